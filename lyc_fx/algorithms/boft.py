"""BOFT: a butterfly of orthogonal blocks (arXiv:2311.06243, as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.maps import Map
from lyc_fx.algebra.shapes import Shape
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class BOFT(Orthogonal):
    """M stages, each a permutation of rows, blocks `I + s · (R - I)`, and the permutation back.

    Stage i pairs rows `2^i · b/2` apart: row index `(c, 2, k)` becomes `(c, k, 2)`, k = 2^i · b/2; then
    consecutive groups of b rows are multiplied by `R[i, j]` (not transposed). At a strength between 0 and 1 each
    stage is interpolated, as in the reference: a polynomial of degree M.
    """

    name = "boft"
    suffixes = {"blocks": "oft_blocks", "rescale": "rescale"}
    layouts = (frozenset({"blocks"}), frozenset({"blocks", "rescale"}))

    blocks: Tensor
    """`(M, n, b, b)`, b even: the generators B, before they are made skew"""

    def fit_blocks(self, out: int) -> None:
        shape = tuple(self.blocks.shape)
        if len(shape) != 4 or shape[1] * shape[2] != out or shape[2] % 2 or out % (2 ** (shape[0] - 1) * shape[2]):
            raise BadAdapter(f"oft_blocks is {shape}, the weight has {out} output rows")

    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        stages, count, size, _ = self.blocks.shape
        turns, steps = self.turns(count * size, strength), list[Map]()
        for stage in range(stages):
            stride = 2**stage * size // 2
            steps += [Swap(2, stride), Blocks(turns[stage]), Swap(stride, 2)]
        return tuple(steps)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2 or shape[0] % 2:
            raise BadAdapter("a butterfly needs an even number of output rows")
        size = shape[0]
        while size % 4 == 0 and size > 2 * rank:
            size //= 2
        count = shape[0] // size
        shapes = {"blocks": (count.bit_length(), count, size, size), "rescale": (shape[0], *(1 for _ in shape[1:]))}
        return {name: shapes[name] for name in cls.suffixes if name in layout}
