"""Rounding: to the nearest, and to either neighbour by chance; values beyond the range are never clipped."""

import pytest
import torch

from lyc_fx.families.finite import all_finite, finite
from lyc_fx.families.rounding import Stochastic, nearest
from lyc_fx.families.widen import widened

DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float16, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_stochastic_rounding_takes_a_neighbour_and_is_right_on_average(dtype: torch.dtype) -> None:
    values = torch.randn(100_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    given = Stochastic(1, "a weight 0")(values, dtype).double()
    limits = torch.finfo(dtype)
    error, unit = given - values, values.abs() * limits.eps + limits.smallest_normal * limits.eps
    assert bool((error.abs() <= unit).all()), "one of the two neighbours"
    assert 0.2 < float((given != nearest(values, dtype).double()).double().mean()) < 0.3, "a quarter is not the nearest"
    assert abs(float((error / unit).mean())) < 5 * float((error / unit).std()) / values.numel() ** 0.5
    exact = nearest(values, dtype).double()
    assert torch.equal(Stochastic(1, "a weight 0")(exact, dtype).double(), exact), "what is representable stays"


def test_the_draw_depends_on_seed_and_place_alone() -> None:
    values = torch.randn(1000, dtype=torch.float64)
    once = Stochastic(1, "w 0")(values, torch.bfloat16)
    assert torch.equal(once, Stochastic(1, "w 0")(values, torch.bfloat16))
    assert not torch.equal(once, Stochastic(2, "w 0")(values, torch.bfloat16))
    assert not torch.equal(once, Stochastic(1, "w 8")(values, torch.bfloat16))


@pytest.mark.parametrize("rounding", [nearest, Stochastic(0, "w")], ids=["nearest", "stochastic"])
def test_float8_is_not_clipped(rounding) -> None:  # type: ignore[no-untyped-def]
    values = torch.tensor([447.0, -448.0, 470.0, -1e6, 3.0], dtype=torch.float64)
    assert torch.isfinite(rounding(values, torch.float8_e4m3fn).float()).tolist() == [True, True, False, False, True]
    large = torch.tensor([57344.0, 70000.0], dtype=torch.float64)
    assert torch.isfinite(rounding(large, torch.float8_e5m2).float()).tolist() == [True, False]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "dtype", [getattr(torch, n) for n in dir(torch) if n.startswith("float8_e") and "8m0" not in n]
)
def test_stochastic_rounding_below_the_smallest_value(dtype: torch.dtype, sign: int) -> None:
    """Some float8 have no -0: its code is NaN."""
    least = float(torch.ones(1, dtype=torch.uint8).view(dtype).double())
    given = Stochastic(1, "a weight 0")(torch.full((20_000,), sign * 0.7 * least, dtype=torch.float64), dtype).double()
    assert set((given / least).abs().tolist()) == {0.0, 1.0}
    assert abs(float(given.mean() / least) - sign * 0.7) < 0.02


FLOAT8 = [getattr(torch, name) for name in dir(torch) if name.startswith("float8_")]


@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", FLOAT8, ids=str)
def test_every_float8_widens_to_its_value(dtype: torch.dtype, wide: torch.dtype) -> None:
    every = torch.arange(256, dtype=torch.int32).to(torch.uint8).view(dtype)
    for values in (every, every.reshape(16, 16).t(), every[3], every[:0], every.reshape(4, 8, 8)[:, 1:]):
        found = widened(values, wide)
        assert found.dtype == wide and found.is_contiguous() and found.shape == values.shape
        torch.testing.assert_close(found, values.to(wide), rtol=0, atol=0, equal_nan=True)
    assert widened(every, wide).data_ptr() != widened(every, wide).data_ptr(), "the caller may write to it"


def test_others_widen_into_memory_of_their_own() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        values = torch.randn(5, 3).to(dtype).t()
        found = widened(values, torch.float64)
        assert torch.equal(found, values.double()) and found.is_contiguous() and found.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("dtype", [*FLOAT8, torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_one_value_that_is_not_finite_is_seen(dtype: torch.dtype) -> None:
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(dtype)
    fine = every[finite(every)]
    assert len(fine) > 0 and all_finite(fine) and all_finite(fine[:0])
    for broken in every[~finite(every)][:300]:
        assert not all_finite(torch.cat([fine[:100], broken.reshape(1), fine[100:200]]))
