"""BOFT on the input side: a butterfly of orthogonal blocks over input columns, and a factor per row (PEFT)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.blocks import Blocks, Swap
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Compose, Diagonal, Map
from lyc_fx.algebra.rotations import cayley, skew


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class InputBOFT(Shaped):
    """`W' = (1 + s (g - 1)) · W · Mᵀ` with `M = M_(m-1) ⋯ M_0` and g a factor per output row.

    `M_i = P_i · diag(I + s (R_ij - I)) · P_iᵀ`, with `Q = (B - Bᵀ) / 2` and `R = (I - Q)(I + Q)⁻¹`. P_i puts the
    chunks of b/2 columns in each group of 2^(i+1) chunks into the order 0, 2, 4 … 1, 3, 5 …: a block of stage i
    mixes two chunks that are 2^i apart. P_0 changes nothing.
    """

    name = "boft-input"
    suffixes = {"blocks": "boft_R", "gain": "boft_s"}
    variants = {"": {"blocks": "stages column_blocks b b", "gain": "each out"}}
    uses_alpha = False

    blocks: Tensor
    """The generators B, before they are made skew"""
    gain: Tensor

    def action(self, strength: Strength) -> Action:
        stages, _, size, _ = self.blocks.shape
        turns, steps = cayley(-skew(self.blocks) / 2, strength).transpose(-1, -2), list[Map]()
        for stage in range(stages):
            apart, turn = 2**stage, Blocks(turns[stage])
            swaps = Swap(apart, 2, size // 2), Swap(2, apart, size // 2)
            steps += [swaps[0], turn, swaps[1]] if stage else [turn]
        gain = Diagonal(1 + strength * (self.gain.reshape(-1) - 1))
        return Mapped(rows=gain, columns=Compose(tuple(steps[::-1])))
