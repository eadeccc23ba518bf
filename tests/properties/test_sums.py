"""Several sets of adapters on one layer, of any two families, lowered: the numbers of the folded program."""

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from nets import VARIANTS, Variant, one, random_for, variant_id
from strategies import Layer, layers_for

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.graph.plan import Plan

quick = settings(
    max_examples=1,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)


def adapters_for(layer: Layer, *variants: Variant) -> list[Adapter]:
    """One of each variant, of different ranks."""
    made = [
        random_for(v, layer.logical, rank=2 + i, alpha=i + 1.5, seed=i, dtype=torch.float64)
        for i, v in enumerate(variants)
    ]
    assume(all(adapter is not None for adapter in made))
    return [adapter for adapter in made if adapter is not None]


@pytest.mark.filterwarnings("ignore::lyc_fx.graph.capture.SpecializedDimension")
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
@quick
@given(data=st.data(), sequential=st.booleans())
def test_sums_of_sets(variant: Variant, data: st.DataObject, sequential: bool) -> None:
    """Two of a family around one of another: as chains, and staged, after strengths have changed."""
    layer = data.draw(layers_for(variant))
    others = [other for other in VARIANTS if random_for(other, layer.logical) is not None]
    stack = adapters_for(layer, variant, data.draw(st.sampled_from(others)), variant)
    strengths = [0.7, -0.4, 1.3]
    program = lyc_fx.capture(layer.net, (layer.x(),), dynamic_shapes={"x": layer.dims})
    sets = [(one(adapter), strength) for adapter, strength in zip(stack, strengths, strict=True)]
    spliced = lyc_fx.splice(program, sets, sequential=sequential)
    lowered = lyc_fx.lower(spliced, Plan.default(spliced))
    staged = lyc_fx.stage(lowered)
    for factor in (1.0, -0.6):
        for index, strength in enumerate(strengths):
            spliced.get_buffer(f"lyc_fx.{index}.strength").fill_(factor * strength)  # one tensor for all three
        lyc_fx.restage(staged)
        folded = lyc_fx.fold(spliced)
        for extra in (0, 2):
            x = layer.x(extra)
            wanted = folded(x)
            torch.testing.assert_close(lowered(x), wanted, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(staged(x), wanted, rtol=1e-9, atol=1e-9)
