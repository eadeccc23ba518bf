"""Diag-OFT: one orthogonal block per group of output rows (arXiv:2306.07280, as in LyCORIS)."""

from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Adapter, Strength
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algebra.blocks import Blocks
from lyc_fx.algebra.maps import Map
from lyc_fx.algebra.new import factorization
from lyc_fx.algebra.shapes import Shape
from lyc_fx.errors import BadAdapter


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class DiagOFT(Orthogonal):
    """`W'[block j] = (I + s · (R_j - I))ᵀ · W[block j]`, out = n · b rows in n blocks of b."""

    name = "diag-oft"
    suffixes = {"blocks": "oft_blocks", "rescale": "rescale"}
    layouts = (frozenset({"blocks"}), frozenset({"blocks", "rescale"}))

    blocks: Tensor
    """`(n, b, b)`: the generators B, before they are made skew"""

    def fit_blocks(self, out: int) -> None:
        if self.blocks.dim() != 3 or self.blocks.shape[0] * self.blocks.shape[1] != out:
            raise BadAdapter(f"oft_blocks is {tuple(self.blocks.shape)}, the weight has {out} output rows")

    def rotation(self, strength: Strength) -> tuple[Map, ...]:
        count, size = self.blocks.shape[:2]
        return (Blocks(self.turns(count * size, strength).transpose(-1, -2)),)

    def row_step(self, shape: Shape, at_most: int) -> int | None:
        size = self.blocks.shape[1]
        return None if self.alpha else max(1, at_most // size) * size

    def rows(self, start: int, stop: int, shape: Shape) -> Adapter:
        """Whole blocks without a constraint, whose norm is taken over all of them, are apart from each other."""
        size = self.blocks.shape[1]
        if self.alpha or start % size or stop % size:
            return super().rows(start, stop, shape)
        rescale = None if self.rescale is None else self.rescale.reshape(-1)[start:stop]
        return replace(self, blocks=self.blocks[start // size : stop // size], rescale=rescale)

    @classmethod
    def factor_shapes(cls, shape: Shape, layout: frozenset[str], rank: int) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2 or shape[0] < 2:
            raise BadAdapter("a rotation of rows needs a weight of at least two dimensions and rows")
        size, count = factorization(shape[0], rank)
        if size == 1:  # a prime number of rows: blocks of 1 would rotate nothing
            size, count = count, size
        shapes = {"blocks": (count, size, size), "rescale": (shape[0], *(1 for _ in shape[1:]))}
        return {name: shapes[name] for name in cls.suffixes if name in layout}
