"""Large weights in blocks: the same result as in one piece, for every family, wherever the cuts fall."""

from dataclasses import replace

import pytest
import torch
from nets import VARIANTS, Variant, random_for, variant_id
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra import hadamard
from lyc_fx.merging import blocks, inplace
from lyc_fx.merging.blocks import largest_piece, on_rows, row_blocks
from lyc_fx.merging.inplace import merged_rows
from lyc_fx.merging.merged import Change, merged
from lyc_fx.numerics.rounding import Rounding

SHAPES = ((60, 26), (60, 6, 3, 3), (64, 21), (397,))
WHOLE = {"tlora", "boft"}
"""Families whose rows depend on each other"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 200)
    monkeypatch.setattr(hadamard, "PIECE", 60)


def in_blocks(weight: Tensor, stack: list[Change], **options: object) -> tuple[Tensor, int]:
    cut = row_blocks(weight.shape, stack)
    assert [a for a, _ in cut] == [0, *(b for _, b in cut[:-1])] and cut[-1][1] == weight.shape[0], "no row twice"
    out = torch.full_like(weight, float("nan"))
    for a, b in cut:
        merged_rows(weight[a:b], on_rows(stack, a, b, weight.shape), out[a:b], **options)  # type: ignore[arg-type]
    return out, len(cut)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_in_blocks_as_in_one_piece(variant: Variant, dtype: torch.dtype) -> None:
    cut = set()
    for shape in SHAPES:
        for rank in (2, 3):  # an even rank has one magnitude per output, an odd one per input
            adapter = random_for(variant, shape, rank=rank, alpha=0.0 if variant[0].alpha_bounds else 2.0)
            if adapter is not None:
                weight = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
                stack = [Change(adapter, 0.7)]
                given, count = in_blocks(weight, stack)
                cut.add(count > 1)
                tolerance = {"rtol": 1e-12, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0, "atol": 0}
                torch.testing.assert_close(given, merged(weight, stack), **tolerance)
    assert True in cut or variant[0].name in WHOLE or not cut


def can_be_cut(adapter: Adapter, shape: tuple[int, ...]) -> bool:
    magnitude = getattr(adapter, "magnitude", None)
    per_input = magnitude is not None and magnitude.shape[0] == 1
    return adapter.name != "tlora" and not (adapter.name == "lokr" and per_input)


def wholly(weight: Tensor, stack: list[Change], result: torch.dtype) -> Tensor:
    out = torch.full_like(weight, float("nan"), dtype=result)
    merged_rows(weight, stack, out)
    return out


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_a_weight_in_memory_in_rows_or_columns(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows depend on each other, columns may not; where these do too, it is one piece."""
    monkeypatch.setattr(blocks, "WIDE", 300)
    largest: list[int] = []
    real = inplace.round_into

    def noted(out: Tensor, values: Tensor, rounding: Rounding) -> None:
        largest.append(values.numel())
        real(out, values, rounding)

    monkeypatch.setattr(inplace, "round_into", noted)
    for shape in SHAPES:
        for rank, alpha in ((2, 0.0), (2, 0.3), (3, 0.0)):
            adapter = random_for(variant, shape, rank=rank, alpha=alpha)
            if adapter is None:
                continue
            stack = [Change(adapter, 0.7)]
            weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
            turned = weight.t().contiguous().t() if weight.dim() == 2 else weight
            for given in (weight, turned):
                largest.clear()
                assert torch.equal(wholly(given, stack, torch.bfloat16), merged(given, stack, result=torch.bfloat16))
                assert (len(largest) > 1) == can_be_cut(adapter, shape) and max(largest) == largest_piece(shape, stack)
                exact = wholly(given.double(), stack, torch.float64)
                torch.testing.assert_close(exact, merged(given.double(), stack), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sequential", [False, True])
def test_stacks_and_slices(sequential: bool) -> None:
    by_name = {v[0].name + str(len(v[1])): v for v in VARIANTS}
    weight = torch.randn(60, 26, dtype=torch.float64)
    locon, lokr, loha = (random_for(by_name[n], (60, 26), rank=2) for n in ("locon2", "lokr3", "loha4"))
    part, dora = random_for(by_name["locon2"], (20, 26), rank=2), random_for(by_name["locon3"], (60, 26), rank=2)
    turned = random_for(by_name["boft1"], (20, 26), rank=2)  # its rows depend on each other
    assert locon and lokr and loha and part and dora and turned
    stacks = [
        [Change(locon, 0.5), Change(loha, -0.3)],
        [Change(locon, 0.5), Change(lokr, 0.7), Change(dora, 1.3)],
        [Change(part, 0.5, (20, 40)), Change(part, 2.0, (40, 60)), Change(loha, 0.1)],
        [Change(part, 0.5, (7, 27)), Change(lokr, 0.7)],
        [Change(turned, 0.5, (20, 40)), Change(part, 0.5, (40, 60))],
        [Change(turned, 0.5, (20, 40)), Change(dora, 0.7)],
    ]
    for stack in stacks:
        given, _ = in_blocks(weight, stack, sequential=sequential)
        wanted = merged(weight, stack, sequential=sequential)
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_in_place_as_by_the_formula(variant: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one piece, float64 results to the bit. And neither the weight nor the factors are written to."""
    monkeypatch.setattr(blocks, "BLOCK", 1 << 19)
    for shape in SHAPES:
        for rank, convention in ((2, "interpolate"), (2, "lycoris"), (3, "interpolate")):
            adapter = random_for(variant, shape, rank=rank, dtype=torch.float64)
            if adapter is None:
                continue
            adapter = replace(adapter, convention=convention)
            before = {name: factor.clone() for name, factor in adapter.factors().items()}
            weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
            for strength in (0.7, 1.0, -0.2):
                given = weight.clone()
                adapter.apply_to(given, strength)
                assert not torch.equal(given, weight)
                torch.testing.assert_close(given, adapter.apply(weight, strength), rtol=1e-12, atol=1e-12)
            for stack in ([Change(adapter, 0.7)], [Change(adapter, 0.7), Change(adapter, -0.2)]):
                kept = weight.clone()
                for dtype in (torch.float64, torch.bfloat16, torch.float16):
                    out = torch.empty_like(weight, dtype=dtype)
                    merged_rows(weight, stack, out)
                    assert torch.equal(out, merged(weight, stack, result=dtype)), dtype
                assert torch.equal(weight, kept)
            assert all(torch.equal(factor, before[name]) for name, factor in adapter.factors().items())


@pytest.mark.parametrize("name", ["locon2", "loha4", "lokr2", "lokr3"])
def test_no_product_of_a_weights_size_where_torch_has_one_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    variant = next(v for v in VARIANTS if v[0].name + str(len(v[1])) == name)
    adapter = random_for(variant, (60, 26), rank=2)
    assert adapter is not None
    weight = torch.randn(60, 26).bfloat16()
    wanted = merged(weight, [Change(adapter, 0.7)])

    def product(*_: object) -> Tensor:
        raise AssertionError("a product of the weight's size was made")

    monkeypatch.setattr(type(adapter.expression()), "value", product)
    out = torch.empty_like(weight)
    merged_rows(weight, [Change(adapter, 0.7)], out)
    assert torch.equal(out, wanted) and not torch.equal(out, weight)
