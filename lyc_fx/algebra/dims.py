"""The shape of a factor, said once: `"out r 1"`, `"r in kernel"`. What fits, is cut and is new follows from it.

A word is a size: `out` and `in` are the first two of the weight (`in` those of one group), `kernel` is all the others,
`1` as many sizes of 1 as the kernel has, `weight` the whole shape; any other word is a rank. `out1` and `out2` (`in1`,
`in2`) are two numbers whose product is `out` (`in`). Sizes after the first may be stored as one; `in*kernel` are so in
new factors.
"""

from collections.abc import Iterator, Mapping
from math import isqrt, prod

from torch import Tensor

from lyc_fx.algebra.shapes import Shape, expect, expect_kernel, expect_matrix, matrix_dims
from lyc_fx.algebra.tensors import some_inputs
from lyc_fx.errors import BadAdapter

Dims = Mapping[str, str]
"""By the factor's field"""
Factors = Mapping[str, Tensor]
_OF_WEIGHT = ("out", "in", "kernel", "1")


def fit(dims: Dims, suffixes: Mapping[str, str], factors: Factors, shape: Shape) -> None:
    """Raise BadAdapter, naming the factor by its suffix, unless these are factors for a weight of this shape."""
    for name, words in _parsed(dims):
        if words == ["weight"]:
            expect("the difference" if suffixes[name] != "set_weight" else "the value", factors[name].shape, shape)
    if list(dims.values()) == ["weight"]:
        return
    out, inner, taps = matrix_dims(shape)
    sizes = {"out": out, "in": inner, "kernel": taps, "1": 1} | _read(dims, factors)
    if "out1" in sizes:
        if sizes["out1"] * sizes["out2"] != out or inner % sizes["in1"]:
            raise BadAdapter(
                f"factors of {sizes['out1']}·{sizes['out2']} rows and {sizes['in1']}·n columns do not make a weight of "
                f"{tuple(shape)}"
            )
        sizes["in2"] = inner // sizes["in1"]
    for name, words in _parsed(dims):
        factor, suffix = factors[name], suffixes[name]
        if _is_core(words) and factor.dim() != len(shape):
            raise BadAdapter(f"{suffix} is {tuple(factor.shape)}, the weight is {tuple(shape)}")
        expect_matrix(suffix, factor, (sizes[words[0]], prod(sizes[word] for word in words[1:])))
        if "kernel" in words:
            expect_kernel(suffix, factor, shape)


def weight_shape(dims: Dims, factors: Factors) -> tuple[int, ...]:
    """Of the weight that factors were made for; a kernel may be missing, or part of the inputs where they are one."""
    sizes = _read(dims, factors)
    inputs, kernel = [0], list[int]()
    for name, words in _parsed(dims):
        given = list(factors[name].shape)
        if words == ["weight"]:
            return tuple(given)
        for at, word in enumerate(words):
            if word == "out":
                sizes["out"] = given[at]
            if word in ("in", "in2"):
                inputs = given[at:] if "kernel" in words else given[at : at + 1]
        if _is_core(words):
            kernel = given[len(words) - 1 :]
    if "out1" in sizes:
        return sizes["out1"] * sizes["out2"], sizes["in1"] * inputs[0], *inputs[1:], *kernel
    return sizes["out"], *inputs, *kernel


def of_rows(dims: Dims, factors: Factors, start: int, stop: int) -> dict[str, Tensor] | None:
    """The factors that differ for some rows alone; None where no factors give these rows and no others."""
    sizes = _read(dims, factors)
    cuts = {"out": (start, stop), "weight": (start, stop)}
    if "out2" in sizes:
        height = sizes["out2"]
        row = start // height
        if start % height == 0 and stop % height == 0:
            cuts = {"out1": (row, stop // height)}
        elif row == (stop - 1) // height:
            cuts = {"out1": (row, row + 1), "out2": (start - row * height, stop - row * height)}
        else:
            return None
    found = {}
    for name, words in _parsed(dims):
        for word in {*words} & {*cuts}:
            first, last = cuts[word]
            found[name] = factors[name].narrow(words.index(word), first, last - first)
    return found


def row_step(dims: Dims, factors: Factors, at_most: int) -> int:
    """Rows of the blocks in which `of_rows` can cut."""
    height = _read(dims, factors).get("out2", 1)
    if height <= at_most:
        return at_most // height * height
    return max(size for size in range(1, at_most + 1) if height % size == 0)


def of_columns(dims: Dims, factors: Factors, start: int, stop: int, shape: Shape) -> dict[str, Tensor] | None:
    """The factors that differ for some inputs alone; None where no factors give these alone."""
    found = {}
    for name, words in _parsed(dims):
        if "in1" in words or "weight" in words:
            return None
        if "in" in words:
            at = words.index("in")
            taken = "kernel" in words
            found[name] = (
                some_inputs(factors[name], start, stop, shape)
                if taken
                else factors[name].narrow(at, start, stop - start)
            )
    return found


def new_shapes(dims: Dims, shape: Shape, rank: int) -> dict[str, tuple[int, ...]]:
    """Shapes of new factors. Raises BadAdapter where there are none for a weight of this shape."""
    if list(dims.values()) == ["weight"]:
        return {name: tuple(shape) for name in dims}
    out, inner, _ = matrix_dims(shape)
    kernel = tuple(shape[2:])
    if not kernel and any(_is_core(words) for _, words in _parsed(dims)):
        raise BadAdapter("a Tucker core needs a convolution")
    (out1, out2), (in1, in2) = factorization(out), factorization(inner)
    sizes = {"out": (out,), "in": (inner,), "kernel": kernel, "1": (1,) * len(kernel)}
    sizes |= {"out1": (out1,), "out2": (out2,), "in1": (in1,), "in2": (in2,)}
    sizes |= {f"{word}*kernel": (prod((size, *kernel)),) for word, size in (("in", inner), ("in2", in2))}
    return {n: tuple(s for word in words.split() for s in sizes.get(word, (rank,))) for n, words in dims.items()}


def factorization(size: int, factor: int = -1) -> tuple[int, int]:
    """`size = m · n`, m ≤ n, as LyCORIS chooses it for a *new* adapter; one that exists is read by its shapes.

    A factor that divides is taken as it is, also above √size; else m is the greatest divisor up to it and √size.
    """
    if factor > 0 and size % factor == 0:
        low, high = sorted((factor, size // factor))
        return low, high
    bound = isqrt(size) if factor < 0 else max(1, min(factor, isqrt(size)))
    m = next(d for d in range(bound, 0, -1) if size % d == 0)
    return m, size // m


def _parsed(dims: Dims) -> Iterator[tuple[str, list[str]]]:
    for name, text in dims.items():
        yield name, text.replace("*", " ").split()


def _is_core(words: list[str]) -> bool:
    """Of a Tucker product: it has the kernel, and the inputs are another factor's."""
    return "kernel" in words and not {"in", "in2"} & {*words}


def _read(dims: Dims, factors: Factors) -> dict[str, int]:
    """The sizes that are not the weight's, each from the last factor that has it."""
    found = {}
    for name, words in _parsed(dims):
        given = factors[name].shape
        for at, word in enumerate(words[: len(given)]):
            if word not in (*_OF_WEIGHT, "in2", "weight"):
                found[word] = prod(given[at:]) if at == len(words) - 1 else given[at]
    return found
