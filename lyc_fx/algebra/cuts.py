"""Factors of some rows or inputs of a weight alone, from the words of their shapes."""

from torch import Tensor

from lyc_fx.algebra.factor_shapes import Dims, Factors, parsed, read
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.tensors import some_inputs


def of_rows(dims: Dims, factors: Factors, start: int, stop: int) -> dict[str, Tensor] | None:
    """The factors that must be cut for rows start to stop; None if no cut describes exactly these rows."""
    sizes = read(dims, factors)
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
    for name, words in parsed(dims):
        for word in {*words} & {*cuts}:
            first, last = cuts[word]
            found[name] = factors[name].narrow(words.index(word), first, last - first)
    return found


def row_step(dims: Dims, factors: Factors, at_most: int) -> int:
    """Rows of the blocks in which `of_rows` can cut."""
    height = read(dims, factors).get("out2", 1)
    if height <= at_most:
        return at_most // height * height
    return max(size for size in range(1, at_most + 1) if height % size == 0)


def of_columns(dims: Dims, factors: Factors, start: int, stop: int, shape: Shape) -> dict[str, Tensor] | None:
    """The factors that must be cut for inputs start to stop; None if no cut describes exactly these."""
    found = {}
    for name, words in parsed(dims):
        if "in1" in words or "weight" in words:
            return None
        if "in" in words:
            factor = factors[name]
            with_kernel, at = "kernel" in words, words.index("in")
            found[name] = (
                some_inputs(factor, start, stop, shape) if with_kernel else factor.narrow(at, start, stop - start)
            )
    return found
