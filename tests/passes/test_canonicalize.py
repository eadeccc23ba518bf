"""canonicalize: each rule fires on what means nothing, and leaves the near miss alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lyc_fx.graph import pipeline
from lyc_fx.graph.program import history
from lyc_fx.graph.rewrite import EMITTED
from lyc_fx.graph.show import show
from lyc_fx.passes.canonicalize import Canonicalize

Formula = Callable[[Tensor], Tensor]


def canonical(formula: Formula, x: Tensor, *, emitted: bool = True) -> torch.fx.GraphModule:
    program = make_fx(formula, tracing_mode="fake", pre_dispatch=True)(x)
    for node in program.graph.nodes:
        node.meta[EMITTED] = emitted
    after = pipeline.run(program, Canonicalize())
    torch.testing.assert_close(after(x), formula(x), rtol=0, atol=0)
    return after


X = torch.randn(3, 8, dtype=torch.float32)
FIRES: dict[str, Formula] = {
    "x·1": lambda x: x * 1.0,
    "cast to own dtype": lambda x: torch.ops.aten.to.dtype(x, torch.float32),
    "no-op reshape": lambda x: x.reshape(3, 8),
    "transpose of transpose": lambda x: x.t().t(),
    "widened": lambda x: x.double().float(),
    "reshape of reshape to the same": lambda x: x.reshape(24).reshape(3, 8),
    "cast outside a reshape": lambda x: x.double().reshape(24).float().reshape(3, 8),
    "cast outside a transpose": lambda x: x.double().t().float().t(),
}
STAYS: dict[str, Formula] = {
    "x·2": lambda x: x * 2.0,
    "1 of another dtype": lambda x: x * torch.ones((), dtype=torch.float64) * 1.5,
    "narrowed": lambda x: x.to(torch.bfloat16).float(),
    "through an integer": lambda x: x.to(torch.int32).float(),
    "a reshape": lambda x: x.reshape(24),
    "one transpose": lambda x: x.t(),
    "widened": lambda x: x.double(),
}


@pytest.mark.parametrize("name", FIRES)
def test_fires(name: str) -> None:
    after = canonical(FIRES[name], X)
    assert history(after)[-1].fired > 0
    assert show(after).splitlines() == ["x_1 = input", "return x_1"]


@pytest.mark.parametrize("name", STAYS)
def test_leaves_the_near_miss_alone(name: str) -> None:
    after = canonical(STAYS[name], X)
    assert history(after)[-1].fired == 0


def test_the_models_own_nodes_are_left_alone() -> None:
    after = canonical(lambda x: (x * 1.0).t().t(), X, emitted=False)
    assert history(after)[-1].fired == 0
    assert show(after).count("aten.t(") == 2
