"""Translation validation: checking on random inputs that a program computes the same before and after a pass.

`lyc_fx.graph.verify` proves shapes and dtypes; here the numbers are compared, at the sizes of the capture and, if sizes
are dynamic, at other sizes too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.program import BANK, get_tensor
from lyc_fx.graph.show import around
from lyc_fx.graph.trials import outputs, trials, values


@final
@dataclass(frozen=True)
class Trial:
    """Inputs of a program, and its outputs for them."""

    inputs: Sequence[Any]
    outputs: Sequence[Any]


@final
@dataclass(frozen=True)
class Validation:
    """What a program computes, for inputs of up to two choices of its sizes."""

    trials: tuple[Trial, ...]
    tolerance: float
    """The largest difference allowed, relative to an output's norm: the square root of the program's `precision`"""

    @classmethod
    def of(cls, gm: GraphModule) -> Self:
        """Run a program on trial inputs. Raises InvalidGraph if its weights have no values, or no output is finite."""
        for node in gm.graph.find_nodes(op="get_attr"):
            value = node.meta.get("val")
            if isinstance(value, Tensor) and (get_tensor(gm, str(node.target)).is_meta):
                raise InvalidGraph(
                    f"check=True runs the program, and {node.target} has no values yet: load weights first"
                )
        found = tuple(Trial(given, outputs(gm, given)) for given in trials(gm))
        if all(_blank(value) for trial in found for value in trial.outputs):
            raise InvalidGraph("check=True: on random inputs the program gives no finite values that could be compared")
        return cls(found, precision(gm) ** 0.5)

    def check(self, gm: GraphModule, before: GraphModule, name: str) -> None:
        """Raise InvalidGraph, naming the pass and the first node that differs, unless `gm` computes the same.

        `before` is the program before that pass.
        """
        for trial in self.trials:
            for old, new in zip(trial.outputs, outputs(gm, trial.inputs), strict=True):
                if (apart := gap(old, new)) > self.tolerance:
                    raise InvalidGraph(
                        f"pass {name} changes what the program computes, by {apart:.1e} of an output's "
                        f"norm; {self._culprit(gm, before, trial)}"
                    )

    def _culprit(self, gm: GraphModule, before: GraphModule, trial: Trial) -> str:
        """Describe the first node of both programs that gives other values, and the rules that made its inputs."""
        old, new = ({n.name: (n, v) for n, v in values(p, trial.inputs)} for p in (before, gm))
        for name, (node, value) in new.items():
            if name in old and node.op != "get_attr" and gap(old[name][1], value) > self.tolerance:
                near = [each.meta.get(BANK) for each in (node, *node.all_input_nodes)]
                rules = dict.fromkeys(rule for rule in near if rule)
                made = f", which reads what was made by {', '.join(rules)}" if rules else ""
                return f"the first node that differs is {name}{made}\n{around(gm, node)}"
        return "no node that both programs have differs"


def _blank(value: Any) -> bool:
    return not isinstance(value, Tensor) or not bool(torch.isfinite(value).any())


def gap(old: Any, new: Any) -> float:
    """Return the norm of the difference of two results, relative to the first; infinite if they differ in kind."""
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        return 0.0 if isinstance(old, Tensor) == isinstance(new, Tensor) and old == new else float("inf")
    if old.shape != new.shape or old.dtype != new.dtype:
        return float("inf")
    if not old.is_floating_point() and not old.is_complex():
        return 0.0 if torch.equal(old, new) else float("inf")
    wide = torch.complex128 if old.is_complex() else torch.float64
    left, right = old.to(wide), new.to(wide)
    finite = torch.isfinite(left)
    if not torch.equal(finite, torch.isfinite(right)):
        return float("inf")
    left, right = left[finite], right[finite]
    return float((left - right).norm() / left.norm().clamp(min=torch.finfo(torch.float32).tiny))


def precision(gm: GraphModule) -> float:
    """Return the largest machine epsilon of the dtypes in a program, apart from those of stored adapters."""
    values = [node.meta.get("val") for node in gm.graph.nodes if BANK not in node.meta]
    return max(
        (torch.finfo(v.dtype).eps for v in values if isinstance(v, FakeTensor) and v.is_floating_point()),
        default=torch.finfo(torch.float32).eps,
    )
