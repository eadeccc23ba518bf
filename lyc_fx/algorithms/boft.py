"""BOFT: a butterfly of orthogonal blocks (arXiv:2311.06243, as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.maps import Map


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
    variants = {
        "": {"blocks": "stages row_blocks b b"},
        "rescale": {"blocks": "stages row_blocks b b", "rescale": "each out"},
    }

    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        stages, count, size, _ = self.blocks.shape
        turns, steps = self.turns(count * size, strength), list[Map]()
        for stage in range(stages):
            stride = 2**stage * size // 2
            steps += [Swap(2, stride), Blocks(turns[stage]), Swap(stride, 2)]
        return tuple(steps)
