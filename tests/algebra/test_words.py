"""What follows from the words of a factor's shape where a family has no code of its own for it."""

import pytest
import torch
from torch import Tensor

from lyc_fx.algebra import cuts, factor_shapes
from lyc_fx.algebra.new import new_shapes
from lyc_fx.errors import BadAdapter

ROWS, COLUMNS = {"x": "row_blocks b b"}, {"x": "column_blocks b b"}
ROW_STAGES, COLUMN_STAGES = {"x": "stages row_blocks b b"}, {"x": "stages column_blocks b b"}


def fits(dims: dict[str, str], factor: Tensor, shape: tuple[int, ...]) -> str | None:
    """None, or the error's text."""
    try:
        factor_shapes.fit(dims, {"x": "x"}, {"x": factor}, shape)
    except BadAdapter as error:
        return str(error)
    return None


@pytest.mark.parametrize(
    ("dims", "given", "shape", "fault"),
    [
        (ROWS, (4, 3, 3), (12, 5), None),
        (ROWS, (1, 3, 3), (12, 5), "x is (1, 3, 3), 1 blocks of 3: the weight has 12 output rows"),
        (ROWS, (4, 3, 2), (12, 5), "x is (4, 3, 2), not (row_blocks, b, b) with square blocks"),
        (COLUMNS, (1, 3, 3), (5, 4, 3), None),
        (COLUMNS, (4, 3, 3), (5, 4, 3), None),
        (COLUMNS, (1, 5, 5), (5, 4, 3), "x is (1, 5, 5), 1 blocks of 5: the weight has 12 input columns"),
        (ROW_STAGES, (2, 4, 3, 3), (12, 5), "x is (2, 4, 3, 3): 12 output rows do not have so many stages"),
        (ROW_STAGES, (1, 4, 3, 3), (12, 5), "x is (1, 4, 3, 3): 12 output rows do not have so many stages"),
        (COLUMN_STAGES, (1, 4, 3, 3), (5, 12), None),
        (COLUMN_STAGES, (2, 6, 2, 2), (5, 12), None),
        (COLUMN_STAGES, (4, 6, 2, 2), (5, 12), "x is (4, 6, 2, 2): 12 input columns do not have so many stages"),
        ({"x": "each out"}, (1, 12, 1), (12, 5), None),
        ({"x": "each out"}, (3, 4), (12, 5), "x is (3, 4), the weight asks for one value for each of 12 output rows"),
        ({"x": "each in"}, (5,), (12, 4), "x is (5,), the weight asks for one value for each of 4 inputs"),
    ],
)
def test_what_fits(dims: dict[str, str], given: tuple[int, ...], shape: tuple[int, ...], fault: str | None) -> None:
    assert fits(dims, torch.ones(given), shape) == fault


@pytest.mark.parametrize("dims", [ROWS, COLUMNS, ROW_STAGES, COLUMN_STAGES, {"x": "each out"}, {"x": "each in"}])
@pytest.mark.parametrize("shape", [(12, 6), (16, 8, 3), (2, 7), (6, 4, 1, 2)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_new_shapes_fit(dims: dict[str, str], shape: tuple[int, ...], rank: int) -> None:
    assert fits(dims, torch.ones(new_shapes(dims, shape, rank)["x"]), shape) is None


def test_rows_are_cut_between_blocks() -> None:
    shape, factors = (12, 5), {"x": torch.randn(4, 3, 3)}
    cut = cuts.of_rows(ROWS, factors, 3, 9, shape)
    assert cut is not None and torch.equal(cut["x"], factors["x"][1:3])
    assert cuts.of_rows(ROWS, factors, 3, 8, shape) is None
    assert [cuts.row_step(ROWS, factors, most) for most in (2, 3, 8)] == [3, 3, 6]
    assert cuts.row_step(ROW_STAGES, {"x": torch.ones(2, 3, 4, 4)}, 8) is None


def test_of_columns_alone_no_weight_s_shape_follows() -> None:
    for dims, given in ((ROWS, (4, 3, 3)), (COLUMNS, (4, 3, 3)), ({"x": "each out"}, (12,)), ({"x": "in r"}, (6, 2))):
        assert factor_shapes.weight_shape(dims, {"x": torch.ones(given)}) is None
