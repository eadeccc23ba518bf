"""Files that diffusers saves, against the forward of the model that saved them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from conversions import flux, unet
from torch import Tensor, nn

import lyc_fx

pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3, "lora_alpha": 5.0},
    "rslora": {"r": 3, "lora_alpha": 5.0, "use_rslora": True},
    "patterns": {"r": 3, "lora_alpha": 5.0, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_k": 7.0}},
    "dora": {"r": 3, "lora_alpha": 5.0, "use_dora": True},
    "bias": {"r": 3, "lora_alpha": 5.0, "lora_bias": True},
}


def inputs(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    if kind == "unet":
        return {
            "sample": torch.randn(2, 4, 8, 8),
            "timestep": torch.tensor(7),
            "encoder_hidden_states": torch.randn(2, 5, 12),
        }
    return {
        "hidden_states": torch.randn(2, 4, 4),
        "encoder_hidden_states": torch.randn(2, 3, 10),
        "pooled_projections": torch.randn(2, 9),
        "timestep": torch.tensor([0.5, 0.5]),
        "guidance": torch.tensor([3.0, 3.0]),
        "txt_ids": torch.zeros(3, 3),
        "img_ids": torch.arange(12.0).reshape(4, 3),
    }


def trained(model: nn.Module, settings: dict[str, Any]) -> None:
    """Give the model an adapter with random factors."""
    with_bias = [name for name, module in model.named_modules() if getattr(module, "bias", None) is not None]
    targets = [name for name, _ in model.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
    if "lora_bias" in settings:  # there is nowhere to merge the bias of an adapter for a layer without one
        targets = [name for name in targets if name in with_bias]
    model.add_adapter(peft.LoraConfig(target_modules=targets, init_lora_weights=False, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                noise = torch.randn_like(parameter) * 0.3
                parameter.copy_(parameter + noise.abs() if "magnitude" in name else noise)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", ["unet", "flux"])
def test_a_model_s_own_file(kind: str, settings: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = (unet(False) if kind == "unet" else flux()).double().eval()
    given = {name: value.double() if value.is_floating_point() else value for name, value in inputs(kind).items()}
    adapted = copy.deepcopy(model)
    trained(adapted, SETTINGS[settings])
    adapted.save_lora_adapter(tmp_path)
    with torch.no_grad():
        wanted, before = adapted(**given).sample, model(**given).sample
        report = lyc_fx.merge(model, lyc_fx.load(tmp_path / "pytorch_lora_weights.safetensors"))
        assert len(report.applied) >= 4
        merged = model(**given).sample
    assert (wanted - before).norm() > 1e-3
    assert (merged - wanted).norm() <= 1e-6 * (wanted - before).norm()  # the file is in float32
