"""What must hold for every model of the zoo, on the graph road and on the live road."""

import copy

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from tests.zoo.adapted import adapters_for, called, layers, pairs, shape_of, tensors
from tests.zoo.case import Case

STRENGTH = 0.7
SIZES = (0, 1)


def weights_of(case: Case, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """All weights that get an adapter, by their path."""
    return {**case.bare, **{path: shape_of(layer) for path, layer in layers(model).items()}}


def check(case: Case, model: nn.Module, captured: GraphModule) -> None:
    """A captured model computes what eager does, and adapters on all its weights do the same on both roads."""
    base = [called(model, case.call(size)) for size in SIZES]
    for size in SIZES:
        for eager, graph in pairs(base[size], called(captured, case.call(size))):
            same(eager, graph, exact=case.exact)
    weights = weights_of(case, model)
    adapters = adapters_for(weights, torch.float64)
    adapted = lyc_fx.splice(captured, adapters, STRENGTH)
    folded = lyc_fx.fold(adapted, check=True)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    check_splice(adapted, weights)
    check_fold(folded, captured, live)
    for size in SIZES:
        expected = called(live, case.call(size))
        for one, other in pairs(expected, called(folded, case.call(size))):
            same(one, other, exact=case.exact)
        for one, other in pairs(expected, called(adapted, case.call(size))):
            same(one, other, exact=False)  # the layers get other strides than those of stored weights
        before, after = tensors(base[size])[0], tensors(expected)[0]
        assert (before - after).abs().max() > 1e-3 * before.abs().max(), "the adapters have hardly any effect"


def check_splice(adapted: GraphModule, weights: dict[str, tuple[int, ...]]) -> None:
    """Every weight was adapted once, and the report names it."""
    splice = lyc_fx.history(adapted)[-1]
    assert splice.name == "splice"
    assert splice.fired == len(weights) > 0
    report = lyc_fx.report(adapted)
    assert sorted(row.target.removesuffix(".weight") for row in report.applied) == sorted(weights)
    assert not report.unused


def check_fold(folded: GraphModule, captured: GraphModule, live: nn.Module) -> None:
    """The captured program's operators, the model's keys, and the weights that the live road makes."""
    assert lyc_fx.show(folded) == lyc_fx.show(captured)
    merged = live.state_dict()
    assert sorted(folded.state_dict()) == sorted(captured.state_dict()) == sorted(merged)
    for name, tensor in folded.state_dict().items():
        assert torch.equal(tensor, merged[name]), name


def same(left: Tensor, right: Tensor, *, exact: bool) -> None:
    """Equal bits, or else float64 up to rounding."""
    if exact or not left.is_floating_point():
        assert torch.equal(left, right)
    else:
        torch.testing.assert_close(left, right, rtol=1e-11, atol=1e-12)
