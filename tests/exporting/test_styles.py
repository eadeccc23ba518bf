"""Programs whose samples have strengths of their own: equal to each sample alone, the base's row to the bit."""

from functools import cache

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lokr, lora, merged, net
from nets import CASES, VARIANTS, Case, Variant, certain, one, pairs, variant_id
from torch import nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import lyc_fx
from lyc_fx.errors import InvalidGraph, Unsupported
from lyc_fx.passes.per_sample import PerSample

TAKEN = [v for v in VARIANTS if v[0].name in ("locon", "loha", "lokr", "glora") and "magnitude" not in v[1]]
LAYERS = [case for case in CASES if case.name in ("linear", "addmm", "conv2d-grouped-dilated", "conv1d")]


@cache
def program(case: Case) -> GraphModule:
    return lyc_fx.capture(case.net(), (case.x(),), dynamic_shapes={"x": case.dims})


@pytest.mark.parametrize(("variant", "case"), pairs(LAYERS, TAKEN), ids=variant_id)
def test_each_sample_has_its_own_strengths(variant: Variant, case: Case) -> None:
    sets = [
        one(certain(variant, case.logical, rank=r, alpha=a, seed=r, dtype=torch.float64))
        for r, a in ((3, 2.0), (2, 5.0))
    ]
    styles = lyc_fx.styles(lyc_fx.splice(program(case), sets))
    step = next(step for step in lyc_fx.history(styles) if step.name == "per_sample")
    assert step.fired >= 1
    x = case.x(extra=1)
    strengths = torch.tensor([[0.0, 0.0], [0.75, -0.5], [0.0, 1.25], [2.0, 0.0]])[: len(x)]
    y = styles(x, strengths=strengths)
    assert torch.equal(y[0], program(case)(x)[0])
    adapted = lyc_fx.splice(program(case), sets)
    for sample, mine in enumerate(strengths.tolist()):
        for position, value in enumerate(mine):
            adapted.get_buffer(f"lyc_fx.{position}.strength").fill_(value)
        torch.testing.assert_close(y[sample], adapted(x)[sample], rtol=1e-10, atol=1e-10)


def test_three_algorithms_in_one_program() -> None:
    sets = [lora(3, 2.0), loha(2, 1.5), lokr(3.0)]
    styles = lyc_fx.styles(lyc_fx.splice(captured(), sets))
    x, scale = inputs(5)
    strengths = torch.tensor([[0, 0, 0], [0.5, 0, 0], [0, -0.75, 0], [0, 0, 1.5], [0.25, 0.5, -1]])
    with torch.no_grad():
        y = pytree.tree_leaves(styles(x, scale=scale, strengths=strengths))
        base = pytree.tree_leaves(net()(x, scale=scale))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(y, base, strict=True))
    for sample in range(1, 5):
        wanted = merged([(each, s) for each, s in zip(sets, strengths[sample].tolist(), strict=True) if s], 1.0, 5)
        assert apart([tensor[sample] for tensor in y], [tensor[sample] for tensor in wanted]) < 5e-6


def test_nothing_of_the_strengths_is_left_inside() -> None:
    styles = lyc_fx.styles(lyc_fx.splice(captured(), [lora(3, 2.0), loha(2, 1.5)]))
    assert not [n for n in styles.graph.find_nodes(op="get_attr") if "strength" in str(n.target)]
    left = [n.target for n in styles.graph.nodes if n.target is torch.ops.aten.mul.Tensor and 1 in n.args[1:]]
    assert not left, "a product with 1 stayed"


@pytest.mark.parametrize("name", ["diag-oft", "full", "ia3", "tlora"])
def test_what_stays_with_the_weight_is_refused_with_its_site(name: str) -> None:
    variant = next(v for v in VARIANTS if v[0].name == name)
    case = LAYERS[0]
    adapted = lyc_fx.splice(program(case), one(certain(variant, case.logical, dtype=torch.float64)))
    with pytest.raises(Unsupported, match=r"cannot be given for each sample:\n  layer: "):
        lyc_fx.styles(adapted)


class Turned(nn.Module):
    """Whose layer reads time before samples."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.transpose(0, 1)).transpose(0, 1)


def test_activations_whose_first_size_is_another_are_refused() -> None:
    turned = lyc_fx.capture(Turned().eval(), (torch.randn(3, 4, 6),), dynamic_shapes={"x": "batch time _"})
    adapter = certain(TAKEN[0], (15, 6))
    with pytest.raises(Unsupported, match="their first size must be that"):
        lyc_fx.styles(lyc_fx.splice(turned, one(adapter)))


def test_the_pass_asks_for_strengths_that_are_there() -> None:
    from lyc_fx.graph import pipeline

    with pytest.raises(InvalidGraph, match="no adapter sets"):
        pipeline.run(captured(), PerSample())
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(captured(), lora(3, 2.0))))
    with pytest.raises(InvalidGraph, match="staged"):
        pipeline.run(staged, PerSample())
