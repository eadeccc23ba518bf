"""`Piece`: which rows of which parameter a name stands for."""

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
    """One stretch of rows. A name for several parameters, or for a part of one, stands for a sequence of them."""

    parameter: str
    rows: Rows | None = None
    """Of the parameter; None for all"""
    of: Rows | None = None
    """Of what the name stands for; None for all"""


Pieces = tuple[Piece, ...]


def whole(parameter: str) -> Pieces:
    """A name for one parameter as it is."""
    return (Piece(parameter),)


def concatenated(parameters: Sequence[str], shapes: Shapes) -> Pieces:
    """A name for the rows of several parameters, one after another (fused qkv for separate projections)."""
    made, start = [], 0
    for parameter in parameters:
        stop = start + shapes[parameter][0]
        made.append(Piece(parameter, None, (start, stop)))
        start = stop
    return tuple(made)


def parts(parameter: str, sizes: Sequence[int]) -> list[Pieces]:
    """For each stretch of a parameter's rows, the name for it alone (a separate projection for fused qkv)."""
    made: list[Pieces] = []
    start = 0
    for size in sizes:
        made.append((Piece(parameter, (start, start + size)),))
        start += size
    return made


def halves_swapped(parameter: str, rows: int) -> Pieces:
    """A name for a parameter whose two halves stand the other way round (shift and scale of adaLN)."""
    half = rows // 2
    return (Piece(parameter, (half, rows), (0, half)), Piece(parameter, (0, half), (half, rows)))
