"""`Piece`: the rows of a parameter that a name in an adapter file means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

Rows = tuple[int, int]
"""First row, and the one after the last, of the logical weight `(out, in, *kernel)`"""
Shapes = Mapping[str, tuple[int, ...]]
"""Logical shapes of a model's parameters, by name"""


@final
@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one parameter. A name for several parameters, or for a part of one, means several pieces."""

    parameter: str
    rows: Rows | None = None
    """The rows of the parameter; None for all"""
    source_rows: Rows | None = None
    """The rows of the weight that the name means, and so of its adapter, which go to `rows`; None for all"""


Pieces = tuple[Piece, ...]
"""What one name means: the pieces of its weight"""


def whole(parameter: str) -> Pieces:
    """Return the pieces of a name for exactly one parameter."""
    return (Piece(parameter),)


def concatenated(parameters: Sequence[str], shapes: Shapes) -> Pieces:
    """Return the pieces of a name for several parameters stacked along their rows: fused qkv, for q, k and v."""
    made, start = [], 0
    for parameter in parameters:
        stop = start + shapes[parameter][0]
        made.append(Piece(parameter, None, (start, stop)))
        start = stop
    return tuple(made)


def parts(parameter: str, sizes: Sequence[int]) -> list[Pieces]:
    """Split a parameter into rows of these sizes, and return the pieces of each: q, k and v, for fused qkv."""
    made: list[Pieces] = []
    start = 0
    for size in sizes:
        made.append((Piece(parameter, (start, start + size)),))
        start += size
    return made


def halves_swapped(parameter: str, rows: int) -> Pieces:
    """Return the pieces of a name for a parameter with its two halves in the other order (shift and scale of adaLN)."""
    half = rows // 2
    return (Piece(parameter, (half, rows), (0, half)), Piece(parameter, (0, half), (half, rows)))
