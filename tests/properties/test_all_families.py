"""What holds for every family on every layer kind, at random ranks, shapes, strengths and symbolic sizes."""

import copy

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from nets import VARIANTS, Variant, one, random_for, variant_id
from strategies import Layer, layers_for
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive

pytestmark = pytest.mark.filterwarnings(
    "ignore::lyc_fx.binding.report.NothingChanged"
)  # strength 0 is among what is tried

SUMS = [(f, layout) for f, layout in VARIANTS if issubclass(f, Additive) and "magnitude" not in layout]
strengths = st.floats(-2, 2).filter(lambda s: abs(s) > 0.05 and s != 1)
quick = settings(
    max_examples=2,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),  # shrinking captures hundreds of models: take it out to debug
)


def adapter_for(variant: Variant, layer: Layer, rank: int, seed: int = 0) -> Adapter:
    adapter = random_for(variant, layer.logical, rank=rank, alpha=rank + 1.5, seed=seed, dtype=torch.float64)
    assume(adapter is not None)
    assert adapter is not None
    return adapter


def output_shape(program: GraphModule) -> str:
    """The output's shape as expressions in the program's symbolic sizes."""
    [output] = program.graph.find_nodes(op="output")
    return str([tuple(node.meta["val"].shape) for node in output.all_input_nodes])


@pytest.mark.filterwarnings("ignore::lyc_fx.graph.capture.SpecializedDimension")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@quick
@given(data=st.data(), rank=st.integers(1, 5), strength=strengths)
def test_graph_road(variant: Variant, data: st.DataObject, rank: int, strength: float) -> None:
    """All on the program of one capture."""
    layer = data.draw(layers_for(variant))
    adapter = adapter_for(variant, layer, rank)
    others = [a for v in VARIANTS if (a := random_for(v, layer.logical, rank=2, seed=1)) is not None]
    second = data.draw(st.sampled_from(others))
    program = lyc_fx.capture(layer.net, (layer.x(),), dynamic_shapes={"x": layer.dims})
    splice_fold_and_lower(program, layer, adapter, strength)
    strength_zero_and_stacks(program, layer, adapter, second, strength)


def splice_fold_and_lower(program: GraphModule, layer: Layer, adapter: Adapter, strength: float) -> None:
    """Shapes symbolically and at run time; fold equals merge to the bit; lower keeps the numbers."""
    adapted = lyc_fx.splice(program, one(adapter), strength)
    folded, lowered = lyc_fx.fold(adapted, check=True), lyc_fx.lower(adapted, check=True)
    assert lyc_fx.history(adapted)[-1].fired == 1
    assert output_shape(program) == output_shape(adapted) == output_shape(folded) == output_shape(lowered)
    assert lyc_fx.show(folded) == lyc_fx.show(program)
    assert list(folded.state_dict()) == list(layer.net.state_dict())

    live = copy.deepcopy(layer.net)
    lyc_fx.merge(live, one(adapter), strength)
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, folded.state_dict()[name]), name
    for extra in (0, 2):
        x = layer.x(extra)
        base, wanted = layer.net(x), live(x)
        assert wanted.shape == base.shape
        torch.testing.assert_close(folded(x), wanted, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(adapted(x), wanted, rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(lowered(x), wanted, rtol=1e-9, atol=1e-9)
    assert not torch.equal(layer.net.get_parameter("layer.weight"), live.get_parameter("layer.weight"))


def strength_zero_and_stacks(
    program: GraphModule, layer: Layer, adapter: Adapter, second: Adapter, strength: float
) -> None:
    """Strength 0 is the base to the bit; two adapters commute to the bit, on the graph and the live road."""
    nothing = lyc_fx.fold(lyc_fx.splice(program, one(adapter), 0.0))
    for name, tensor in layer.net.state_dict().items():
        assert tensor.view(torch.int64).equal(nothing.state_dict()[name].view(torch.int64)), name

    pairs = [(one(adapter), strength), (one(second), 0.3)]
    weights = []
    for stack in (pairs, pairs[::-1]):
        spliced = lyc_fx.splice(program, stack)
        weights.append(lyc_fx.fold(spliced).get_parameter("layer.weight"))
        live = copy.deepcopy(layer.net)
        lyc_fx.merge(live, stack)
        weights.append(live.get_parameter("layer.weight"))
    x = layer.x()
    torch.testing.assert_close(lyc_fx.lower(spliced, check=True)(x), live(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(weight, weights[0]) for weight in weights)


@pytest.mark.filterwarnings("ignore::lyc_fx.graph.capture.SpecializedDimension")
@pytest.mark.parametrize("variant", SUMS, ids=variant_id)
@quick
@given(data=st.data(), rank=st.integers(1, 5), strength=strengths)
def test_zero_factors_and_linearity(variant: Variant, data: st.DataObject, rank: int, strength: float) -> None:
    """An additive family is linear in strength, and zero factors change nothing."""
    layer = data.draw(layers_for(variant))
    adapter = adapter_for(variant, layer, rank)
    assert isinstance(adapter, Additive) and adapter.additive
    zero = adapter.with_factors({name: torch.zeros_like(f) for name, f in adapter.factors().items()})
    live = copy.deepcopy(layer.net)
    lyc_fx.merge(live, one(zero), strength)
    weight = layer.net.get_parameter("layer.weight").detach()
    assert torch.equal(live.get_parameter("layer.weight"), weight)

    delta = adapter.delta(layer.logical)
    assert tuple(delta.shape) == layer.logical
    change = delta.t() if layer.transposed else delta
    lyc_fx.merge(live, one(adapter), strength)
    torch.testing.assert_close(live.get_parameter("layer.weight"), weight + strength * change, rtol=1e-12, atol=1e-12)
