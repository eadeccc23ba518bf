"""Against PEFT's forward on Linear, Conv2d and Embedding: directories that PEFT saves, for what it does rightly."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadFile
from lyc_fx.formats import AssumedScale

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings

CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 2.5}),
    "lora, patterns and rslora": (
        "LoraConfig",
        {
            "r": 4,
            "lora_alpha": 2.5,
            "use_rslora": True,
            "rank_pattern": {"fc": 3},
            "alpha_pattern": {"conv": 5.0, "^fc": 7.0},
        },
    ),
    "lora with bias": ("LoraConfig", {"r": 4, "lora_alpha": 2.5, "lora_bias": True}),
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 2.5, "use_dora": True}),
    "loha": ("LoHaConfig", {"r": 4, "alpha": 2.5}),
    "loha tucker": ("LoHaConfig", {"r": 4, "alpha": 2.5, "use_effective_conv2d": True}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 1.5}),
    "lokr both decomposed": ("LoKrConfig", {"r": 1, "alpha": 1.5, "decompose_both": True}),
    "lokr tucker": ("LoKrConfig", {"r": 2, "alpha": 1.5, "use_effective_conv2d": True}),
    "ia3": ("IA3Config", {"feedforward_modules": ["fc"], "target_modules": ["fc"]}),
}


class Net(nn.Module):
    """An embedding, a Linear and a strided convolution, out ≠ in, with bias."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 24)
        self.fc = nn.Linear(24, 40)
        self.conv = nn.Conv2d(24, 40, 3, stride=2, padding=1)

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.emb(ids), self.fc(self.emb(ids)), self.conv(image)


def inputs() -> tuple[Tensor, Tensor]:
    return torch.arange(6).reshape(2, 3), torch.randn(2, 24, 7, 6, generator=torch.Generator().manual_seed(1))


def saved_by_peft(model: nn.Module, name: str, folder: Path, **options: Any) -> tuple[Tensor, ...]:
    """Let PEFT adapt a copy of the model, with random factors, and save the adapter; its forward."""
    config, settings = CONFIGS[name]
    made = getattr(peft, config)(**({"target_modules": ["fc", "conv"]} | settings | options))
    adapted = peft.get_peft_model(copy.deepcopy(model), made).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for key, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn_like(parameter) * 0.2
                parameter.copy_(parameter.abs() + noise.abs() if "magnitude" in key or "ia3" in key else noise)
        wanted = adapted(*inputs())
    adapted.save_pretrained(str(folder))
    return wanted


@pytest.mark.parametrize("name", CONFIGS)
def test_directories_saved_by_peft_match_its_forward(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Net().eval()
    wanted = saved_by_peft(model, name, tmp_path)
    live = copy.deepcopy(model)
    report = lyc_fx.merge(live, lyc_fx.load(tmp_path))
    changed = {row.target.partition(".")[0] for row in report.applied}
    assert changed == set(CONFIGS[name][1].get("target_modules", ["fc", "conv"]))
    outputs = zip(("emb", "fc", "conv"), live(*inputs()), wanted, model(*inputs()), strict=True)
    for layer, ours, theirs, plain in outputs:
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max(), layer
        assert ((theirs - plain).abs().max() > 1e-2) == (layer in changed)


def test_an_embedding(tmp_path: Path) -> None:
    model = Net().eval()
    wanted = saved_by_peft(model, "lora", tmp_path, target_modules=["emb"])
    lyc_fx.merge(model, lyc_fx.load(tmp_path / "adapter_model.safetensors"))
    for ours, theirs in zip(model(*inputs()), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_multihead_attention_s_input_projection(tmp_path: Path) -> None:
    """Its output projection is on the list of PEFT's mistakes: it applies that change twice."""
    torch.manual_seed(0)
    model = nn.Sequential()
    model.attn = nn.MultiheadAttention(8, 2)
    tensors = {
        "base_model.model.attn.lora_A.weight": torch.randn(3, 8),
        "base_model.model.attn.lora_B.weight": torch.randn(24, 3),
        "base_model.model.attn.base_layer.out_proj.lora_A.weight": torch.randn(3, 8),
        "base_model.model.attn.base_layer.out_proj.lora_B.weight": torch.randn(8, 3),
    }
    report = lyc_fx.merge(model, lyc_fx.load(tensors, config={"lora_alpha": 6, "r": 3}))
    assert [(row.target, row.scale) for row in report.applied] == [
        ("attn.in_proj_weight", 2.0),
        ("attn.out_proj.weight", 2.0),
    ]


def test_without_its_configuration_an_adapter_has_no_scale(tmp_path: Path) -> None:
    saved_by_peft(Net(), "lora", tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    with pytest.warns(AssumedScale, match="no adapter_config.json and no alpha says the scale of its 2 adapters"):
        lyc_fx.load(tensors)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert len(lyc_fx.load(tensors, config=config)) == 2
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(BadFile, match=r"adapter_config\.json: is not readable JSON"):
        lyc_fx.load(tmp_path)
