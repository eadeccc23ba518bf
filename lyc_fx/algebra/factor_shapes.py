"""The shape of a factor, said once: `"out r 1"`, `"r in kernel"`.

From it follow which weights factors fit, and which weight they were made for (here), the factors of some rows or inputs
alone (`cuts`), and the shapes of new ones (`new`).

A word is a size: `out` and `in` are the first two of the weight (`in` those of one group), `kernel` is all the others,
`1` one size of 1 for each kernel dimension (or, as the first word, one size of 1), `weight` the whole shape, `channels`
that of a weight of one dimension; a letter, as r or p2, is a rank. `out1` and `out2` (`in1`, `in2`) are two numbers
whose product is `out` (`in`). When factors are read, all sizes after the first may be stored as one; `in*kernel` are so
in new factors. `each out` and `each in` are a value for each, beside any dimensions of size 1. Of a weight of three
dimensions `experts` are the first. Square blocks are in `block_shapes`.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from math import prod

from torch import Tensor

from lyc_fx.algebra import block_shapes
from lyc_fx.algebra.block_shapes import Words
from lyc_fx.algebra.shapes import Shape, expect, expect_kernel, expect_matrix, expect_values, matrix_dims
from lyc_fx.errors import BadAdapter

Dims = Mapping[str, str]
"""By the factor's field"""
Factors = Mapping[str, Tensor]
_OF_WEIGHT = ("out", "in", "kernel", "1", "in*kernel", "weight")
_INPUTS = {"in", "in1", "in2", "in*kernel"}
RANK = re.compile(r"[a-z]\d*")
WORDS = (
    "out", "in", "kernel", "1", "weight", "channels", "each", "out1", "out2", "in1", "in2", "experts",
    "stages", "row_blocks", "column_blocks",
)  # fmt: skip
"""All others"""


def fit(dims: Dims, suffixes: Mapping[str, str], factors: Factors, shape: Shape) -> None:
    """Raise BadAdapter, naming the factor by its suffix, unless these are factors for a weight of this shape."""
    if whole(dims):
        for name, factor in factors.items():
            if dims[name] == "channels" and len(shape) != 1:
                raise BadAdapter(f"a {name} is for a vector, not for shape {tuple(shape)}")
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
        if block_shapes.is_blocks(words):
            block_shapes.fit(words, suffix, factor, shape)
        elif is_values(words):
            expect_values(suffix, factor, sizes[words[1]], words[1])
        elif len(words) == 1:
            expect(suffix, factor.shape, (sizes[words[0]],))
        elif is_core(words) and factor.dim() != len(shape):
            raise BadAdapter(f"{suffix} is {tuple(factor.shape)}, the weight is {tuple(shape)}")
        else:
            expect_matrix(suffix, factor, (sizes[words[0]], prod(sizes[word] for word in words[1:])))
            if "kernel" in words:
                expect_kernel(suffix, factor, shape)


def weight_shape(dims: Dims, factors: Factors) -> tuple[int, ...] | None:
    """Of the weight that factors were made for; the kernel may be absent, or be part of the inputs if stored so.

    None where they do not tell the outputs or the inputs.
    """
    if whole(dims):
        return tuple(*(factor.shape for factor in factors.values()))
    sizes = read(dims, factors)
    inputs, kernel = list[int](), list[int]()
    for name, words in parsed(dims):
        given = list(factors[name].shape)
        given = [prod(given)] * len(words) if is_values(words) else given
        for at, word in enumerate(words):
            if word == "out":
                sizes["out"] = given[at]
            if word in ("in", "in2"):
                inputs = given[at:] if "kernel" in words else given[at : at + 1]
        if is_core(words):
            kernel = given[len(words) - 1 :]
    if "out1" in sizes:
        return sizes["out1"] * sizes["out2"], sizes["in1"] * inputs[0], *inputs[1:], *kernel
    return (sizes["out"], *inputs, *kernel) if "out" in sizes and inputs else None


def rank(dims: Dims, factors: Factors) -> int | None:
    """The one beside the inputs, in the first factor that has both; else the first, such as the size of blocks."""
    first = None
    for name, words in parsed(dims):
        for word, size in zip(words, factors[name].shape, strict=False):
            if RANK.fullmatch(word):
                if _INPUTS & {*words}:
                    return size
                first = size if first is None else first
    return first


def whole(dims: Dims) -> bool:
    """Whether there is one factor, in the weight's own shape."""
    return list(dims.values()) in (["weight"], ["channels"])


def is_vector(words: Words) -> bool:
    """Whether a factor may have fewer dimensions than a matrix."""
    return len(words) == 1 or is_values(words)


def is_values(words: Words) -> bool:
    """Whether a factor is one value for each row or input."""
    return words[0] == "each"


def parsed(dims: Dims) -> Iterator[tuple[str, Words]]:
    """The words of each factor."""
    return ((name, _words(text)) for name, text in dims.items())


@cache
def _words(text: str) -> Words:
    first, *rest = text.split()
    return (first, *" ".join(rest).replace("*", " ").split())


def is_core(words: Words) -> bool:
    """Whether this is a Tucker core: it has the kernel, but not the inputs."""
    return "kernel" in words and not _INPUTS & {*words}


def read(dims: Dims, factors: Factors) -> dict[str, int]:
    """Ranks and Kronecker sizes; of several factors with a word the last one counts, and `fit` compares the others."""
    found = {}
    for name, words in parsed(dims):
        given = factors[name].shape
        if is_values(words):
            continue
        for at, word in enumerate(words[: len(given)]):
            if word not in _OF_WEIGHT:
                found[word] = prod(given[at:]) if at == len(words) - 1 else given[at]
    return found
