"""What the tests of chains share: more layers, an adapted program, and how often a pass fired."""

from functools import cache

import torch
from nets import CASES, Case, one, random_for
from torch import nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import FAMILIES

EVEN = Case("linear-even", lambda: nn.Linear(6, 16), (2, 5, 6), "batch sequence _")
GROUPED = Case("conv2d-grouped", lambda: nn.Conv2d(8, 12, 3, padding=1, groups=2), (2, 8, 5, 6), "batch _ height width")
DEPTHWISE = Case("conv1d-depthwise", lambda: nn.Conv1d(6, 12, 3, groups=6), (2, 6, 9), "batch _ length")
LINEAR, CONV = CASES[0], next(c for c in CASES if c.name == "conv2d-grouped-dilated")
MORE_CASES = (*CASES, EVEN, GROUPED, DEPTHWISE)


def groups_of(case: Case) -> int:
    return getattr(case.net().layer, "groups", 1)


def made(name: str, case: Case, *factors: str, rank: int = 3, seed: int = 0) -> Adapter:
    """A random adapter of a family by name; `factors` are those of its layout beyond the first one."""
    family = next(f for f in FAMILIES if f.name == name)
    layout = next(la for la in family.layouts if la == family.layouts[0] | set(factors) or la == set(factors))
    adapter = random_for((family, layout), case.logical, rank=rank, seed=seed)
    assert adapter is not None
    return adapter


def adapted(
    case: Case, *adapters: Adapter, dtype: torch.dtype = torch.float64, sequential: bool = False
) -> GraphModule:
    return lyc_fx.splice(
        captured(case, dtype), [(one(a), 0.7 + i) for i, a in enumerate(adapters)], sequential=sequential
    )


@cache
def captured(case: Case, dtype: torch.dtype) -> GraphModule:
    """Passes leave it as it is: one will do for all tests."""
    return lyc_fx.capture(case.net(dtype), (case.x(dtype),), dynamic_shapes={"x": case.dims})


def fired(program: GraphModule, name: str = "distribute") -> int:
    return sum(step.fired for step in lyc_fx.history(program) if step.name == name)


def misses(program: GraphModule) -> list[str]:
    return [str(miss) for step in lyc_fx.history(program) for miss in step.misses]


def same_numbers(after: GraphModule, before: GraphModule, case: Case) -> None:
    """At two input sizes, in float64."""
    for extra in (0, 3):
        x = case.x(extra=extra)
        torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-11)
