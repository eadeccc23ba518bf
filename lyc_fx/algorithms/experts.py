"""Experts: one low-rank product for each slice of a 3-D parameter, such as the experts of a mixture (PEFT)."""

from dataclasses import dataclass
from typing import Literal, final

from torch import Tensor

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra import Batched, Shape, Structure
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Experts(Additive):
    """`ΔW[e] = alpha/r · up[e] @ down[e]`, or its transpose where the model stores `(e, in, out)`.

    The file does not say which of the two it is: the weight's shape does, or where in = out what the binding knows.
    PEFT's older versions take every weight for `(e, in, out)`, newer ones only where the module says `is_transposed`:
    of one that is known to be so, all mean the same.
    """

    name = "experts"
    suffixes = {"up": "experts_up", "down": "experts_down"}
    variants = {"": {"up": "experts out r", "down": "experts r in"}}

    up: Tensor
    down: Tensor
    turned: Literal[True] | None = None
    """That a weight with in = out is `(e, in, out)`; None where nothing shows it"""

    def fit(self, shape: Shape) -> None:
        up, down = tuple(self.up.shape), tuple(self.down.shape)
        if len(up) != 3 or len(down) != 3 or up[0] != down[0] or up[2] != down[1]:
            raise BadAdapter(f"experts_up is {up}, experts_down {down}: not (experts, out, r) and (experts, r, in)")
        straight, turned = (up[0], up[1], down[2]), (up[0], down[2], up[1])
        if up[0] == 1 and tuple(shape) == straight[1:]:
            return  # a matrix, which PEFT always has as (out, in)
        if tuple(shape) not in (straight, turned):
            raise BadAdapter(f"the factors give {straight} or {turned}, the weight is {tuple(shape)}")
        if straight == turned and not self.turned:
            raise BadAdapter(
                f"whether the weight {tuple(shape)} is (experts, out, in) or (experts, in, out) cannot be told: "
                "merge with PEFT"
            )

    def weight_shape(self) -> None:
        """Which of the two it is, the factors do not tell."""

    def expression(self) -> Structure:
        return Batched(self.up, self.down, turned=bool(self.turned))

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) != 3 or shape[1] == shape[2]:
            raise BadAdapter("experts need a weight of three dimensions, with in ≠ out")
        out, inner = (shape[1], shape[2]) if rank % 2 else (shape[2], shape[1])
        return {"up": (shape[0], out, rank), "down": (shape[0], rank, inner)}
