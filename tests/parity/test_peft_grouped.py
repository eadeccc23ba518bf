"""PEFT on grouped convolutions: LoRA has no form as a weight, and is refused in these words; LoHa and IA3 have one."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter

peft = pytest.importorskip("peft")
X = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(6, 9, 3, padding=1, groups=3)
        self.depthwise = nn.Conv1d(6, 6, 3, groups=6)
        self.double()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.conv(x), self.depthwise(x.flatten(2))


def trained(folder: Path, config: Any) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(Grouped(), config)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.data.add_(torch.linspace(-0.4, 0.5, parameter.numel()).reshape(parameter.shape))
                assert "base_layer" not in name
        model.save_pretrained(folder)
    return tuple(output.detach() for output in model(X))


def fold(folder: Path) -> None:
    save_file(Grouped().state_dict(), folder / "base.safetensors")
    lyc_fx.fold_checkpoint(folder / "base.safetensors", folder, folder / "out.safetensors")


ROADS: dict[str, Callable[[Path], object]] = {
    "live": lambda folder: lyc_fx.merge(Grouped(), folder),
    "swap": lambda folder: lyc_fx.live(Grouped()).set(folder),
    "graph": lambda folder: lyc_fx.splice(lyc_fx.capture(Grouped(), (X,)), folder),
    "checkpoint": fold,
}


@pytest.mark.parametrize(("target", "dora"), [("conv", False), ("conv", True), ("depthwise", False)])
def test_lora_is_refused_since_no_weight_represents_it(target: str, dora: bool, tmp_path: Path) -> None:
    outputs = trained(tmp_path, peft.LoraConfig(r=6, lora_alpha=4, target_modules=[target], use_dora=dora))
    assert not all(torch.allclose(a, b) for a, b in zip(outputs, Grouped()(X), strict=True))
    groups, shape = {"conv": (3, r"\(9, 2, 3, 3\)"), "depthwise": (6, r"\(6, 1, 3\)")}[target]
    for road, run in ROADS.items():
        with pytest.raises(BadAdapter, match=rf"{target}.weight {shape}: .* {groups} groups.* no weight of the layer"):
            run(tmp_path)
        assert not (tmp_path / "out.safetensors").exists(), road


@pytest.mark.parametrize("method", ["LoHa", "IA3"])
def test_what_a_weight_represents(method: str, tmp_path: Path) -> None:
    config = {
        "LoHa": lambda: peft.LoHaConfig(r=2, alpha=3, target_modules=["conv", "depthwise"]),
        "IA3": lambda: peft.IA3Config(target_modules=["conv"], feedforward_modules=[]),
    }[method]()
    outputs = trained(tmp_path, config)
    net = Grouped()
    lyc_fx.merge(net, tmp_path)
    for ours, theirs in zip(net(X), outputs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(outputs[0], Grouped()(X)[0])
