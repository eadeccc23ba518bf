"""How much of an adapter acts at each position of a layer's results."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self, final, get_args

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from lyc_fx.errors import WrongArgument

Over = Literal["tokens", "image"]
Grid = tuple[int, ...]
"""The sizes of a layer's results between samples and channels"""


@final
@dataclass(frozen=True)
class Mask:
    """One adapter's, for every grid that it is for."""

    everywhere: Tensor | None
    """Of no dimensions; None for a mask that differs from position to position"""
    levels: Mapping[Grid, Tensor]
    """By grid, `(samples or 1, *grid)`"""
    elsewhere: float | None
    """For layers without such positions; None where there should be none"""

    @classmethod
    def of(cls, given: Tensor | float, over: Over, elsewhere: float | None) -> Self:
        """From a number, or a tensor over tokens or an image, perhaps with a dimension for samples before.

        Over tokens: `(tokens)` or `(samples, tokens)`. Over an image: `(height, width)` or `(samples, height, width)`.
        An image's is averaged for the smaller grids that halving gives, and repeated for larger ones; a layer of tokens
        that has as many as such a grid has them row by row. Raises WrongArgument.
        """
        if over not in get_args(Over):
            raise WrongArgument(f"over={over!r}: a mask is over {' or '.join(map(repr, get_args(Over)))}")
        mask = given if isinstance(given, Tensor) else torch.tensor(given, dtype=torch.float64)
        if not mask.is_floating_point():
            mask = mask.float()
        if not bool(mask.isfinite().all()):
            raise WrongArgument("a mask is not finite everywhere")
        if mask.dim() == 0:
            return cls(mask, {}, elsewhere)
        dims = 1 if over == "tokens" else 2
        if mask.dim() not in (dims, dims + 1):
            raise WrongArgument(f"a mask of shape {tuple(mask.shape)} is not over {over}, with or without samples")
        mask = mask if mask.dim() == dims + 1 else mask.unsqueeze(0)
        return cls(None, dict(_tokens(mask) if over == "tokens" else _image(mask)), elsewhere)

    def to(self, device: torch.device) -> Self:
        """On a device."""
        levels = {grid: level.to(device) for grid, level in self.levels.items()}
        return replace(self, everywhere=None if self.everywhere is None else self.everywhere.to(device), levels=levels)

    def at(self, grid: Grid, what: str) -> Tensor | float:
        """The mask for a grid. Raises WrongArgument for one that it is not for."""
        if self.everywhere is not None:
            return self.everywhere
        found = self.levels.get(grid)
        if found is not None:
            return found
        if self.elsewhere is None or len(grid) == 2:  # an image that the mask does not fit, rather than no image
            raise WrongArgument(
                f"the results of {what} have positions {grid}, and the mask is for {sorted(self.levels)}: give a mask "
                "of the right size, or for layers without such positions (text, time) elsewhere=0.0 or 1.0"
            )
        return self.elsewhere


def _tokens(mask: Tensor) -> Iterator[tuple[Grid, Tensor]]:
    yield (mask.shape[1],), mask


def _image(mask: Tensor) -> Iterator[tuple[Grid, Tensor]]:
    image = mask.unsqueeze(1)
    height, width = mask.shape[1:]
    levels = [interpolate(image, scale_factor=float(scale), mode="nearest") for scale in (8, 4, 2)]
    while True:
        levels.append(adaptive_avg_pool2d(image, (height, width)))
        if max(height, width) == 1:
            break
        height, width = (height + 1) // 2, (width + 1) // 2
    for level in levels:
        grid = tuple(level.shape[2:])
        yield grid, level.squeeze(1)
        yield (grid[0] * grid[1],), level.flatten(1)
