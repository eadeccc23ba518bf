"""Two components whose parameters have the same names: the first is taken and said, unless one is chosen."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter

CHANGE = 0.7 * 1.5


class Block(nn.Module):
    """A few of Wan's names."""

    def __init__(self) -> None:
        super().__init__()
        attention = {name: nn.ModuleDict({"to_q": nn.Linear(6, 5)}) for name in ("attn1", "attn2")}
        self.blocks = nn.ModuleList([nn.ModuleDict(attention)])


def pipe() -> Any:
    torch.manual_seed(0)
    return SimpleNamespace(components={"transformer": Block(), "tokenizer": object(), "transformer_2": Block()})


def tensors(*names: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    found = {}
    for name in names:
        found[f"{name}.lora_up.weight"] = torch.randn(5, 2, generator=rng)
        found[f"{name}.lora_down.weight"] = torch.randn(2, 6, generator=rng)
        found[f"{name}.alpha"] = torch.tensor(3.0)
    return found


def weight(model: nn.Module) -> Tensor:
    return model.get_parameter("blocks.0.attn1.to_q.weight").detach()


ANY = [
    "transformer.blocks.0.attn1.to_q",
    "blocks.0.attn1.to_q",
    "diffusion_model.blocks.0.self_attn.q",
    "lora_unet_blocks_0_self_attn_q",
    "lycoris_blocks_0_attn1_to_q",
]
"""Names that mean either"""
SECOND = ["transformer_2.blocks.0.attn1.to_q", "transformer_2.blocks.0.self_attn.q"]


@pytest.mark.parametrize(
    ("name", "component", "changed"),
    [(n, None, ["transformer"]) for n in ANY]
    + [(n, "transformer", ["transformer"]) for n in ANY]
    + [(n, "transformer_2", ["transformer_2"]) for n in ANY]
    + [(n, ["transformer", "transformer_2"], ["transformer", "transformer_2"]) for n in ANY]
    + [(n, None, ["transformer_2"]) for n in SECOND],
)
def test_the_component_that_is_meant(name: str, component: Any, changed: list[str], tmp_path: Path) -> None:
    given, before = pipe(), pipe()
    adapters = lyc_fx.load(tensors(name))
    report = lyc_fx.merge(given, adapters, 0.7, component=component)
    [up, down, _] = tensors(name).values()
    for each in ("transformer", "transformer_2"):
        own, base = weight(given.components[each]), weight(before.components[each])
        wanted = base.double() + CHANGE * up.double() @ down.double() if each in changed else base.double()
        torch.testing.assert_close(own.double(), wanted, rtol=1e-6, atol=1e-6)
    told = [note for note in report.notes if "have the same parameter names" in note]
    assert bool(told) == (component is None)
    for each, module in before.components.items():
        if isinstance(module, nn.Module):
            (tmp_path / "base" / each).mkdir(parents=True)
            save_file(module.state_dict(), tmp_path / "base" / each / "model.safetensors")
    report = lyc_fx.fold_checkpoint(tmp_path / "base", adapters, tmp_path / "out", 0.7, component=component)
    for each in ("transformer", "transformer_2"):
        stored = load_file(tmp_path / "out" / each / "model.safetensors")["blocks.0.attn1.to_q.weight"]
        assert torch.equal(stored, weight(given.components[each]))
    assert bool(told) == any("have the same parameter names" in note for note in report.notes)
    restored = pipe()
    live = lyc_fx.live(restored)
    live.set({adapters: 0.7}, component=component)
    assert torch.equal(weight(restored.components[changed[0]]), weight(given.components[changed[0]]))


def test_a_file_for_both_needs_no_choice() -> None:
    report = lyc_fx.merge(pipe(), tensors(ANY[0], SECOND[0]))
    assert [row.target.partition(".")[0] for row in report.applied] == ["transformer", "transformer_2"]
    assert not report.notes


def test_one_component_has_nothing_to_choose() -> None:
    given = pipe()
    before = copy.deepcopy(given.components["transformer"])
    with pytest.raises(BadAdapter, match=r"component vae: .* the same parameter names: transformer, transformer_2"):
        lyc_fx.merge(given, tensors(ANY[0]), component="vae")
    assert torch.equal(weight(before), weight(given.components["transformer"]))
    with pytest.raises(BadAdapter, match="the model has none"):
        lyc_fx.merge(Block(), tensors(ANY[1]), component="transformer")
    report = lyc_fx.merge(given.components["transformer_2"], tensors(SECOND[0]))
    assert len(report.applied) == 1 and not report.notes
