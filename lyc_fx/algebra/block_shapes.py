"""Factors that are square blocks along the rows or the columns of a weight: `"row_blocks b b"`.

`row_blocks` times b are its output rows, `column_blocks` times b its inputs and taps of the kernel; one block may be
for all columns. With `stages` first they are a butterfly: stage i mixes what is `2^i` half-blocks apart.
"""

from collections.abc import Sequence

from torch import Tensor

from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter

Words = Sequence[str]


def is_blocks(words: Words) -> bool:
    return "row_blocks" in words or "column_blocks" in words


def fit(words: Words, suffix: str, factor: Tensor, shape: Shape) -> None:
    """Raise BadAdapter, naming the factor by its suffix, unless its blocks are for a weight of this shape."""
    given, (size, side) = tuple(factor.shape), side_of(words, shape)
    if len(given) != len(words) or given[-1] != given[-2]:
        raise BadAdapter(f"{suffix} is {given}, not ({', '.join(words)}) with square blocks")
    count, block = given[-3:-1]
    shared = count == 1 and [*words] == ["column_blocks", "b", "b"] and size % block == 0
    if count * block != size and not shared:
        raise BadAdapter(f"{suffix} is {given}, {count} blocks of {block}: the weight has {size} {side}")
    if "stages" in words and not has_stages(given[0], block, size, halved="row_blocks" in words):
        raise BadAdapter(f"{suffix} is {given}: {size} {side} do not have so many stages")


def side_of(words: Words, shape: Shape) -> tuple[int, str]:
    """How many rows or columns the blocks divide, and what these are."""
    out, inner, taps = matrix_dims(shape)
    return (out, "output rows") if "row_blocks" in words else (inner * taps, "input columns")


def has_stages(stages: int, block: int, size: int, halved: bool = False) -> bool:
    """Whether there are so many stages; a first one that is cut into halves needs an even size too."""
    return (stages == 1 and not halved) or (block % 2 == 0 and size % (2 ** (stages - 1) * block) == 0)
