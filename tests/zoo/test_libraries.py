"""Models of diffusers and transformers, as their libraries build them, on the graph road and on the live road."""

import copy

import pytest
import torch

import lyc_fx
from tests.zoo import diffusers_models, transformers_models
from tests.zoo.adapted import STRENGTH, adapters_for, called, layers, pairs, shape_of, splice_fired, tensors
from tests.zoo.case import Case

SIZES = (0, 1)


@pytest.mark.parametrize("case", [*diffusers_models.CASES, *transformers_models.CASES], ids=str)
def test_graph_road_agrees_with_eager_and_with_live_road(case: Case) -> None:
    model = case.model()
    keys = sorted(model.state_dict())
    captured = lyc_fx.capture(model, (), case.call(0), case.shapes)
    base = [called(model, case.call(size)) for size in SIZES]
    for size in SIZES:
        for eager, graph in pairs(base[size], called(captured, case.call(size))):
            assert torch.equal(eager, graph)

    paths = {path: shape_of(layer) for path, layer in layers(model).items()}
    adapters = adapters_for(paths, torch.float64)
    adapted = lyc_fx.splice(captured, adapters, STRENGTH)
    assert splice_fired(adapted) == len(paths) > 0
    assert sorted(row.target for row in lyc_fx.report(adapted).applied) == sorted(f"{path}.weight" for path in paths)

    folded = lyc_fx.fold(adapted)
    assert lyc_fx.show(folded) == lyc_fx.show(captured)
    assert sorted(folded.state_dict()) == sorted(captured.state_dict()) == keys

    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    merged = live.state_dict()
    for name, tensor in folded.state_dict().items():
        assert torch.equal(tensor, merged[name]), name
    for size in SIZES:
        expected = called(live, case.call(size))
        for one, other in pairs(expected, called(folded, case.call(size))):
            assert torch.equal(one, other)
        for one, other in pairs(expected, called(adapted, case.call(size))):  # rounds as its weights' strides make it
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
        changed = [not torch.equal(*both) for both in zip(tensors(base[size]), tensors(expected), strict=True)]
        assert changed[0], "the adapters have no effect"
