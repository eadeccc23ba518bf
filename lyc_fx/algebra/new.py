"""Shapes of new factors, from their words."""

from math import isqrt, prod

from lyc_fx.algebra.block_shapes import has_stages, is_blocks, side_of
from lyc_fx.algebra.factor_shapes import Dims, is_core, is_values, parsed, whole
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter


def new_shapes(dims: Dims, shape: Shape, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of new factors. Raises BadAdapter where there are none for a weight of this shape."""
    if whole(dims):
        if "channels" in dims.values() and len(shape) != 1:
            raise BadAdapter(f"a factor for each channel is for a vector, not for shape {tuple(shape)}")
        return {name: tuple(shape) for name in dims}
    out, inner, _ = matrix_dims(shape)
    kernel = tuple(shape[2:])
    if not kernel and any(is_core(words) for _, words in parsed(dims)):
        raise BadAdapter("a Tucker core needs a convolution")
    (out1, out2), (in1, in2) = factorization(out), factorization(inner)
    sizes = {"out": (out,), "in": (inner,), "kernel": kernel, "1": (1,) * len(kernel)}
    sizes |= {"out1": (out1,), "out2": (out2,), "in1": (in1,), "in2": (in2,)}
    sizes |= {f"{word}*kernel": (prod((size, *kernel)),) for word, size in (("in", inner), ("in2", in2))}
    made = {}
    for name, text in dims.items():
        first, *rest = words = text.split()
        if is_blocks(words):
            made[name] = _blocks(words, shape, rank)
        elif is_values(words):
            own = int("in" in words)
            made[name] = tuple(size if dim == own else 1 for dim, size in enumerate(shape))
        else:
            leading = (1,) if first == "1" else sizes.get(first, (rank,))
            made[name] = (*leading, *(size for word in rest for size in sizes.get(word, (rank,))))
    return made


def _blocks(words: list[str], shape: Shape, rank: int) -> tuple[int, ...]:
    """Of about this size, and in as many stages as there can be. Raises BadAdapter where all would be of size 1."""
    size, side = side_of(words, shape)
    staged, on_rows = "stages" in words, "row_blocks" in words
    if size < 2 or (staged and on_rows and size % 2):
        raise BadAdapter(f"a rotation needs {'an even number of' if staged and on_rows else 'at least two'} {side}")
    if not on_rows:
        block = min((d for d in range(2, size + 1) if size % d == 0), key=lambda d: abs(d - rank))
    elif staged:
        block = size
        while block % 4 == 0 and block > 2 * rank:
            block //= 2
    else:
        low, high = factorization(size, rank)
        block = low if low > 1 else high
    if not staged:
        return 1 if not on_rows and rank % 4 == 0 else size // block, block, block
    stages = 1
    while has_stages(stages + 1, block, size):
        stages += 1
    return stages, size // block, block, block


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """`size = m · n`, m ≤ n, as LyCORIS chooses it for a *new* adapter; one that exists is read by its shapes.

    If `factor` divides `size`, it is used. Otherwise m is the greatest divisor ≤ min(factor, √size).
    """
    if factor > 0 and size % factor == 0:
        low, high = sorted((factor, size // factor))
        return low, high
    bound = isqrt(size) if factor < 0 else max(1, min(factor, isqrt(size)))
    m = next(d for d in range(bound, 0, -1) if size % d == 0)
    return m, size // m
