"""BOFT on the input side: a butterfly of orthogonal blocks over input columns, and a factor per row (PEFT)."""

from dataclasses import dataclass, replace
from typing import Self, final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Compose, Diagonal, Map
from lyc_fx.algebra.rotations import cayley, skew
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InputBOFT(Adapter):
    """`W' = (1 + s (g - 1)) · W · Mᵀ` with `M = M_(m-1) ⋯ M_0` and g a factor per output row.

    `M_i = P_i · diag(I + s (R_ij - I)) · P_iᵀ`, with `Q = (B - Bᵀ) / 2` and `R = (I - Q)(I + Q)⁻¹`. P_i puts the
    chunks of b/2 columns in each group of 2^(i+1) chunks into the order 0, 2, 4 … 1, 3, 5 …: a block of stage i
    mixes two chunks that are 2^i apart. P_0 changes nothing.
    """

    name = "boft-input"
    suffixes = {"blocks": "boft_R", "gain": "boft_s"}
    layouts = (frozenset({"blocks", "gain"}),)
    vectors = frozenset({"gain"})

    blocks: Tensor
    """`(m, n, b, b)`, b even where m > 1: the generators B"""
    gain: Tensor
    """`(out)`, with any dimensions of size 1"""

    @property
    def rank(self) -> int:
        """The block size."""
        return self.blocks.shape[-1]

    @property
    def uses_alpha(self) -> bool:
        return False

    def fit(self, shape: Shape) -> None:
        out, inner, taps = matrix_dims(shape)
        blocks, columns = tuple(self.blocks.shape), inner * taps
        if len(blocks) != 4 or blocks[2] != blocks[3] or blocks[1] * blocks[2] != columns:
            raise BadAdapter(f"boft_R is {blocks}, the weight has {columns} input columns")
        if blocks[0] > 1 and (blocks[2] % 2 or columns % (2 ** (blocks[0] - 1) * blocks[2])):
            raise BadAdapter(f"boft_R is {blocks}: {columns} columns do not have so many stages")
        if self.gain.numel() != out:
            raise BadAdapter(f"boft_s is {tuple(self.gain.shape)}, the weight has {out} output rows")

    def action(self, strength: Strength) -> Action:
        stages, _, size, _ = self.blocks.shape
        turns, steps = cayley(-skew(self.blocks) / 2, strength).transpose(-1, -2), list[Map]()
        for stage in range(stages):
            apart, turn = 2**stage, Blocks(turns[stage])
            swaps = Swap(apart, 2, size // 2), Swap(2, apart, size // 2)
            steps += [swaps[0], turn, swaps[1]] if stage else [turn]
        gain = Diagonal(1 + strength * (self.gain.reshape(-1) - 1))
        return Mapped(rows=gain, columns=Compose(tuple(steps[::-1])))

    def row_step(self, shape: Shape, at_most: int) -> int:
        return at_most

    def rows(self, start: int, stop: int, shape: Shape) -> Self:
        return replace(self, gain=self.gain.reshape(-1)[start:stop])

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        out, inner, taps = matrix_dims(shape)
        columns = inner * taps
        sizes = [size for size in range(2, columns + 1) if columns % size == 0]
        if not sizes:
            raise BadAdapter("a rotation of columns needs more than one input column")
        size = min(sizes, key=lambda each: abs(each - rank))
        stages = 1
        while size % 2 == 0 and columns % (2**stages * size) == 0:
            stages += 1
        return {"blocks": (stages, columns // size, size, size), "gain": (out, 1)}
