"""Large weights in blocks: the same result as in one piece, for every family, wherever the cuts fall."""

import pytest
import torch
from nets import VARIANTS, Variant, random_for, variant_id
from torch import Tensor

from lyc_fx.families import Change, blocks, merged
from lyc_fx.families.blocks import on_rows, row_blocks
from lyc_fx.families.eager import merged_rows

SHAPES = ((60, 26), (60, 6, 3, 3), (64, 21), (397,))
WHOLE = {"tlora", "boft", "experts"}
"""Families that are merged in one piece: rows depend on each other, or are experts"""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 200)


def in_blocks(weight: Tensor, stack: list[Change], **options: object) -> tuple[Tensor, int]:
    cut = row_blocks(weight.shape, stack)
    assert [a for a, _ in cut] == [0, *(b for _, b in cut[:-1])] and cut[-1][1] == weight.shape[0], "no row twice"
    parts = [merged_rows(weight[a:b], on_rows(stack, a, b, weight.shape), **options) for a, b in cut]  # type: ignore[arg-type]
    return torch.cat(parts), len(cut)


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


@pytest.mark.parametrize("sequential", [False, True])
def test_stacks_and_slices(sequential: bool) -> None:
    by_name = {v[0].name + str(len(v[1])): v for v in VARIANTS}
    weight = torch.randn(60, 26, dtype=torch.float64)
    locon, lokr, loha = (random_for(by_name[n], (60, 26), rank=2) for n in ("locon2", "lokr3", "loha4"))
    part, dora = random_for(by_name["locon2"], (20, 26), rank=2), random_for(by_name["locon3"], (60, 26), rank=2)
    assert locon and lokr and loha and part and dora
    stacks = [
        [Change(locon, 0.5), Change(loha, -0.3)],
        [Change(locon, 0.5), Change(lokr, 0.7), Change(dora, 1.3)],
        [Change(part, 0.5, (20, 40)), Change(part, 2.0, (40, 60)), Change(loha, 0.1)],
        [Change(part, 0.5, (7, 27)), Change(lokr, 0.7)],
    ]
    for stack in stacks:
        given, _ = in_blocks(weight, stack, sequential=sequential)
        wanted = merged(weight, stack, sequential=sequential)
        torch.testing.assert_close(given, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_sums_in_place_have_the_same_bits_and_leave_the_factors_alone(variant: Variant) -> None:
    for shape in SHAPES:
        adapter = random_for(variant, shape, rank=2, dtype=torch.float64)
        if adapter is None:
            continue
        before = {name: factor.clone() for name, factor in adapter.factors().items()}
        weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        kept = weight.clone()
        stack = [Change(adapter, 0.7), Change(adapter, -0.2)]
        assert torch.equal(merged_rows(weight, stack), merged(weight, stack))
        assert torch.equal(weight, kept)
        assert all(torch.equal(factor, before[name]) for name, factor in adapter.factors().items())
