"""Factors of some rows or inputs of a weight alone, from the words of their shapes."""

from torch import Tensor

from lyc_fx.algebra.factor_shapes import Dims, Factors, is_values, parsed, read
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.tensors import some_inputs


def of_rows(dims: Dims, factors: Factors, start: int, stop: int, shape: Shape) -> dict[str, Tensor] | None:
    """The factors that must be cut for rows start to stop; None if no cut describes exactly these rows."""
    sizes = read(dims, factors)
    cuts = {word: (start, stop) for word in ("out", "weight", "channels")}
    if "experts" in sizes and len(shape) > 2:
        cuts = {"experts": (start, stop)}
    if "row_blocks" in sizes:
        block = sizes["b"]
        if "stages" in sizes or start % block or stop % block:
            return None
        cuts["row_blocks"] = (start // block, stop // block)
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
            factor, at = factors[name], words.index(word)
            if is_values(words):
                factor, at = factor.reshape(-1), 0
            found[name] = factor.narrow(at, first, last - first)
    return found


def row_step(dims: Dims, factors: Factors, at_most: int) -> int | None:
    """Rows of the blocks in which `of_rows` can cut; None if it can cut none."""
    sizes = read(dims, factors)
    if "row_blocks" in sizes:
        return None if "stages" in sizes else max(1, at_most // sizes["b"]) * sizes["b"]
    height = sizes.get("out2", 1)
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
