"""Rounding: to the nearest, and to either neighbour by chance; values beyond the range are never clipped."""

import pytest
import torch

from lyc_fx.numerics.finite import all_finite, finite
from lyc_fx.numerics.rounding import Stochastic, nearest, round_into
from lyc_fx.numerics.widen import widened

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


NARROW = [*(d for d in FLOAT8 if "8m0" not in str(d)), torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", NARROW, ids=str)
@pytest.mark.parametrize("into", [False, True], ids=["nearest", "round_into"])
def test_no_value_is_rounded_twice(dtype: torch.dtype, into: bool) -> None:
    """Every value of the dtype, the midpoint to the next, and what float32 cannot tell from that midpoint."""
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(torch.uint8).view(dtype)
    values = every[finite(every)].double().abs().unique()
    low, high = values[:-1], values[1:]
    middle = (low + high) / 2
    step = torch.finfo(torch.float32).eps * 2.0**-10 * middle
    near = torch.cat([low, middle - step, middle + step, middle]).view(4, -1)
    assert torch.equal(near[1].float(), near[2].float()) and bool((near[1] < near[2]).all())
    ties = torch.where(low == nearest(middle, dtype).double(), low, high)
    assert torch.equal(_parity(ties.to(dtype)), torch.zeros_like(ties)), "of two that are as near, the even one"
    wanted = torch.stack([low, low, high, ties])
    for sign in (1, -1):
        given = torch.empty(near.shape, dtype=dtype)
        if into:
            round_into(given, sign * near, nearest)
        else:
            given = nearest(sign * near, dtype)
        assert torch.equal(given.double() * sign, wanted)
    assert not torch.equal(near.to(dtype).double(), wanted), "torch's own cast is wrong here"


def test_what_the_sum_of_a_tie_makes_of_it_is_a_tie() -> None:
    for tie, even in ((1 + 2.0**-8, 1.0), (1 + 3 * 2.0**-8, 1 + 2.0**-6)):
        sums = tie * (1 + torch.tensor([-4, -1, 0, 1, 4], dtype=torch.float64) * torch.finfo(torch.float64).eps)
        assert nearest(sums, torch.bfloat16).tolist() == [even] * 5


def _parity(values: torch.Tensor) -> torch.Tensor:
    """The last bit of each code."""
    codes = values.view(torch.uint8 if values.dtype.itemsize == 1 else torch.int16)
    return (codes & 1).double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_keeps_layouts_and_what_is_not_finite(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tie = 1 + torch.finfo(dtype).eps / 2
    values = torch.randn(70, 37, dtype=torch.float64)
    values[3, 5], values[69, 36], values[0, 0] = tie + 2.0**-40, tie + 2.0**-40, torch.nan
    values[1, 0], values[2, 0] = torch.inf, -torch.inf
    for given in (values, values.t(), values[::2, 1::3], values[:0], values[3, 5]):
        plain = given.to(dtype)
        plain[given == tie + 2.0**-40] = 1 + torch.finfo(dtype).eps
        torch.testing.assert_close(nearest(given, dtype), plain, rtol=0, atol=0, equal_nan=True)
        out = torch.empty_like(plain)
        round_into(out, given, nearest)
        torch.testing.assert_close(out, plain, rtol=0, atol=0, equal_nan=True)
