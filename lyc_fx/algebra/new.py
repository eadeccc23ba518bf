"""Shapes of new factors, from their words."""

from math import isqrt, prod

from lyc_fx.algebra.factor_shapes import Dims, is_core, parsed, whole
from lyc_fx.algebra.shapes import Shape, matrix_dims
from lyc_fx.errors import BadAdapter


def new_shapes(dims: Dims, shape: Shape, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of new factors. Raises BadAdapter where there are none for a weight of this shape."""
    if whole(dims):
        return {name: tuple(shape) for name in dims}
    out, inner, _ = matrix_dims(shape)
    kernel = tuple(shape[2:])
    if not kernel and any(is_core(words) for _, words in parsed(dims)):
        raise BadAdapter("a Tucker core needs a convolution")
    (out1, out2), (in1, in2) = factorization(out), factorization(inner)
    sizes = {"out": (out,), "in": (inner,), "kernel": kernel, "1": (1,) * len(kernel)}
    sizes |= {"out1": (out1,), "out2": (out2,), "in1": (in1,), "in2": (in2,)}
    sizes |= {f"{word}*kernel": (prod((size, *kernel)),) for word, size in (("in", inner), ("in2", in2))}
    return {n: tuple(s for word in words.split() for s in sizes.get(word, (rank,))) for n, words in dims.items()}


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
