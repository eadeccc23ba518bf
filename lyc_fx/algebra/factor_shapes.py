"""The shape of a factor, said once: `"out r 1"`, `"r in kernel"`.

From it follow which weights factors fit, and which weight they were made for (here), the factors of some rows or inputs
alone (`cuts`), and the shapes of new ones (`new`).

A word is a size: `out` and `in` are the first two of the weight (`in` those of one group), `kernel` is all the others,
`1` one size of 1 for each kernel dimension, `weight` the whole shape; any other word is a rank. `out1` and `out2`
(`in1`, `in2`) are two numbers whose product is `out` (`in`). When factors are read, all sizes after the first may be
stored as one; `in*kernel` are so in new factors.
"""

from collections.abc import Iterator, Mapping
from math import prod

from torch import Tensor

from lyc_fx.algebra.shapes import Shape, expect, expect_kernel, expect_matrix, matrix_dims
from lyc_fx.errors import BadAdapter

Dims = Mapping[str, str]
"""By the factor's field"""
Factors = Mapping[str, Tensor]
_OF_WEIGHT = ("out", "in", "kernel", "1")


def fit(dims: Dims, suffixes: Mapping[str, str], factors: Factors, shape: Shape) -> None:
    """Raise BadAdapter, naming the factor by its suffix, unless these are factors for a weight of this shape."""
    if whole(dims):
        for name, factor in factors.items():
            expect(f"the {name}", factor.shape, shape)
        return
    out, inner, taps = matrix_dims(shape)
    sizes = {"out": out, "in": inner, "kernel": taps, "1": 1, "in*kernel": inner * taps} | read(dims, factors)
    if "out1" in sizes:
        if sizes["out1"] * sizes["out2"] != out or inner % sizes["in1"]:
            raise BadAdapter(
                f"factors of {sizes['out1']}·{sizes['out2']} rows and {sizes['in1']}·n columns do not make a weight of "
                f"{tuple(shape)}"
            )
        sizes["in2"] = inner // sizes["in1"]
    for name, words in parsed(dims):
        factor, suffix = factors[name], suffixes[name]
        if len(words) == 1:
            expect(suffix, factor.shape, (sizes[words[0]],))
            continue
        if is_core(words) and factor.dim() != len(shape):
            raise BadAdapter(f"{suffix} is {tuple(factor.shape)}, the weight is {tuple(shape)}")
        expect_matrix(suffix, factor, (sizes[words[0]], prod(sizes[word] for word in words[1:])))
        if "kernel" in words:
            expect_kernel(suffix, factor, shape)


def weight_shape(dims: Dims, factors: Factors) -> tuple[int, ...]:
    """Of the weight that factors were made for; the kernel may be absent, or be part of the inputs if stored so."""
    if whole(dims):
        return tuple(*(factor.shape for factor in factors.values()))
    sizes = read(dims, factors)
    inputs, kernel = [0], list[int]()
    for name, words in parsed(dims):
        given = list(factors[name].shape)
        for at, word in enumerate(words):
            if word == "out":
                sizes["out"] = given[at]
            if word in ("in", "in2"):
                inputs = given[at:] if "kernel" in words else given[at : at + 1]
        if is_core(words):
            kernel = given[len(words) - 1 :]
    if "out1" in sizes:
        return sizes["out1"] * sizes["out2"], sizes["in1"] * inputs[0], *inputs[1:], *kernel
    return sizes["out"], *inputs, *kernel


def whole(dims: Dims) -> bool:
    """Whether there is one factor, in the weight's own shape."""
    return list(dims.values()) == ["weight"]


def parsed(dims: Dims) -> Iterator[tuple[str, list[str]]]:
    """The words of each factor."""
    for name, text in dims.items():
        first, *rest = text.split()
        yield name, [first, *" ".join(rest).replace("*", " ").split()]


def is_core(words: list[str]) -> bool:
    """Whether this is a Tucker core: it has the kernel, but not the inputs."""
    return "kernel" in words and not {"in", "in2"} & {*words}


def read(dims: Dims, factors: Factors) -> dict[str, int]:
    """Ranks and Kronecker sizes; of several factors with a word the last one counts, and `fit` compares the others."""
    found = {}
    for name, words in parsed(dims):
        given = factors[name].shape
        for at, word in enumerate(words[: len(given)]):
            if word not in (*_OF_WEIGHT, "in*kernel", "in2", "weight"):
                found[word] = prod(given[at:]) if at == len(words) - 1 else given[at]
    return found
