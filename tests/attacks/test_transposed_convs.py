"""Transposed convolutions: adapters are for the weight as it is stored, and doubtful ones are refused."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from nets import Layers, certain, many, pairs, variant_id
from oracle import adapted
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.replace import Replace
from lyc_fx.errors import BadAdapter

STRENGTH = 0.7
LAYERS = [
    (lambda i, o: nn.ConvTranspose1d(i, o, 3, stride=2), (6, 5)),
    (lambda i, o: nn.ConvTranspose2d(i, o, (3, 2), stride=2), (6, 5, 4)),
    (lambda i, o: nn.ConvTranspose3d(i, o, 2), (6, 3, 3, 2)),
]
LOCON = next(f for f in FAMILIES if f.name == "locon")


@cache
def captured() -> tuple[nn.Module, Tensor, GraphModule]:
    """A model, an input, and the program; nothing changes them."""
    torch.manual_seed(0)
    model = Layers(nn.ConvTranspose2d(6, 15, (3, 2), stride=2)).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    return model, x, lyc_fx.capture(model, (x,))


@pytest.mark.parametrize(("variant", "shape"), pairs([(6, 15, 3, 2)]), ids=variant_id)
def test_the_stored_order_on_every_road(variant, shape: tuple[int, ...], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model, x, program = captured()
    before = model.layer.weight.detach().clone()
    adapter = certain(variant, shape, dtype=torch.float64)
    adapters = many(layer=adapter)
    spliced = lyc_fx.splice(program, many(layer=adapter), STRENGTH)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors", STRENGTH)
    merged = live.layer.weight.detach()
    torch.testing.assert_close(merged, adapted(adapter, model.layer.weight, STRENGTH), rtol=1e-12, atol=1e-12)
    assert torch.equal(lyc_fx.fold(spliced, check=True).get_parameter("layer.weight"), merged)
    assert torch.equal(load_file(tmp_path / "out.safetensors")["layer.weight"], merged)
    torch.testing.assert_close(lyc_fx.lower(spliced, check=True)(x), live(x), rtol=1e-9, atol=1e-9)
    assert torch.equal(model.layer.weight, before)


@pytest.mark.parametrize(("make", "sizes"), LAYERS)
def test_with_equal_sides_only_whole_values_are_clear(
    make: Callable[[int, int], nn.Module], sizes: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = Layers(make(6, 6))
    weight = model.layer.weight.detach().clone()
    program = lyc_fx.capture(model, (torch.randn(2, *sizes),))
    adapter = certain((LOCON, LOCON.layouts[0]), tuple(weight.shape))
    with pytest.raises(
        BadAdapter, match=r"layer.weight .* transposed convolution with as many inputs as outputs.*\.diff"
    ):
        lyc_fx.merge(model, many(layer=adapter), STRENGTH)
    with pytest.raises(BadAdapter, match="transposed convolution with as many inputs as outputs"):
        lyc_fx.splice(program, many(layer=adapter), STRENGTH)
    assert torch.equal(model.layer.weight.detach(), weight)
    diff = torch.randn_like(weight)
    lyc_fx.merge(model, many(layer=Full(diff=diff)), STRENGTH)
    torch.testing.assert_close(model.layer.weight.detach(), weight + STRENGTH * diff)
    lyc_fx.merge(model, many(layer=Replace(value=diff)))
    assert torch.equal(model.layer.weight.detach(), diff)


def test_a_convolution_with_equal_sides_is_clear() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(6, 6, 3)})
    adapter = certain((LOCON, LOCON.layouts[0]), (6, 6, 3, 3))
    assert lyc_fx.merge(model, many(conv=adapter), STRENGTH).changes


def test_a_decomposed_one_without_a_record_of_its_module_is_not_a_linear_one() -> None:
    """A palindromic shape would fit both ways round: the change must lie as the weight does."""
    torch.manual_seed(0)
    model = Layers(nn.ConvTranspose2d(6, 5, (5, 6), stride=2)).double()
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    exported = torch.export.export(model, (x,), strict=False).run_decompositions()
    for node in exported.graph.nodes:
        node.meta.pop("nn_module_stack", None)
    adapter = certain((LOCON, LOCON.layouts[0]), (6, 5, 5, 6), dtype=torch.float64)
    spliced = lyc_fx.splice(lyc_fx.capture(exported), many(layer=adapter), STRENGTH)
    wanted = adapted(adapter, model.layer.weight, STRENGTH)
    folded = lyc_fx.fold(spliced, check=True).get_parameter("layer.weight")
    torch.testing.assert_close(folded.detach(), wanted, rtol=1e-12, atol=1e-12)
    lowered = lyc_fx.lower(spliced, check=True)
    assert sum(step.fired for step in lyc_fx.history(lowered) if step.name == "distribute") == 1
    torch.testing.assert_close(lowered(x), spliced(x), rtol=1e-11, atol=1e-11)
