"""Diag-OFT: one orthogonal block per group of output rows (arXiv:2306.07280, as in LyCORIS)."""

from dataclasses import dataclass
from typing import final

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algebra.blocks import Blocks
from lyc_fx.algebra.maps import Map
from lyc_fx.algebra.shapes import Shape


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DiagOFT(Orthogonal):
    """`W'[block j] = (I + s · (R_j - I))ᵀ · W[block j]`, out = n · b rows in n blocks of b."""

    name = "diag-oft"
    suffixes = {"blocks": "oft_blocks", "rescale": "rescale"}
    variants = {"": {"blocks": "row_blocks b b"}, "rescale": {"blocks": "row_blocks b b", "rescale": "each out"}}

    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        count, size = self.blocks.shape[:2]
        return (Blocks(self.turns(count * size, strength).transpose(-1, -2)),)

    def mixes_rows(self, shape: Shape) -> bool:
        """The norm that is bounded is taken over all blocks."""
        return bool(self.alpha)
