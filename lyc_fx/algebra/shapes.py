"""Shapes of weights and factors, and the errors where they do not fit."""

from collections.abc import Sequence

from torch import Tensor

from lyc_fx.errors import BadAdapter

Shape = Sequence[int]


def expect(what: str, given: Shape, wanted: Shape) -> None:
    """Raise BadAdapter where a shape is not the one that the weight asks for."""
    if tuple(given) != tuple(wanted):
        raise BadAdapter(f"{what} is {tuple(given)}, the weight asks for {tuple(wanted)}")


def matrix_dims(shape: Shape) -> tuple[int, int, int]:
    """`(O, I, *K)` → O, I and the product of K. Raises BadAdapter for fewer than two dimensions."""
    if len(shape) < 2:
        raise BadAdapter(f"the weight has shape {tuple(shape)}: a factor product needs at least two dimensions")
    taps = 1
    for size in shape[2:]:
        taps *= size
    return shape[0], shape[1], taps


def flat_shape(factor: Tensor) -> tuple[int, int]:
    """Shape of `tensors.matrix(factor)`. Raises BadAdapter for fewer than two dimensions."""
    rows, columns, taps = matrix_dims(factor.shape)
    return rows, columns * taps


def expect_matrix(what: str, factor: Tensor, wanted: Shape) -> None:
    """Raise BadAdapter where a factor is not, as a matrix, of the shape that the weight asks for; its own is named."""
    flat = flat_shape(factor)
    if flat != tuple(wanted):
        also = "" if factor.dim() == 2 else f", as a matrix {flat}"
        raise BadAdapter(f"{what} is {tuple(factor.shape)}{also}, the weight asks for {tuple(wanted)}")


def expect_kernel(what: str, factor: Tensor, shape: Shape) -> None:
    """Raise BadAdapter where a factor that carries the kernel has another kernel than the weight."""
    if factor.dim() == len(shape):
        expect(f"the kernel of {what}", factor.shape[2:], shape[2:])


def expect_values(what: str, factor: Tensor, size: int, word: str) -> None:
    """Raise BadAdapter where a factor is not one value for each of so many rows or inputs."""
    if [each for each in factor.shape if each != 1] != [size] * (size != 1):
        of = {"out": "output rows", "in": "inputs"}[word]
        raise BadAdapter(f"{what} is {tuple(factor.shape)}, the weight asks for one value for each of {size} {of}")
