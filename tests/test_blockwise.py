"""A weight merged block by block: the same numbers as the whole, whatever the number of threads."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from nets import VARIANTS, Variant, certain, pairs, random_for, variant_id
from torch import Tensor

from lyc_fx.merging import blocks
from lyc_fx.merging.blockwise import Scheduler, block_merger, run_serially, threaded_scheduler
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.merged import Change, merged


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "BLOCK", 100)
    yield


def merged_into(
    weight: Tensor, stack: list[Change], out: Tensor, scheduler: Scheduler = run_serially, **options: bool
) -> int:
    effects: list[Effect] = []
    scheduler(*block_merger(weight, stack, out, **options), effects.append)  # type: ignore[arg-type]
    return sum(effect.lost for effect in effects)


def changes(variant: Variant, shape: tuple[int, ...]) -> list[Change]:
    return [Change(certain(variant, shape, rank=2, seed=seed, alpha=0.0), 0.6) for seed in range(2)]


def base(shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4)).to(dtype)


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize(
    ("variant", "shape"), pairs([(36, 10), (12, 4, 3, 3), (40,)], rank=2, alpha=0.0), ids=variant_id
)
def test_blocks_give_the_whole(variant: Variant, shape: tuple[int, ...], sequential: bool) -> None:
    stack = changes(variant, shape)
    weight = base(shape, torch.float64)
    wanted = merged(weight, stack, sequential=sequential)
    out = torch.empty_like(weight)
    assert merged_into(weight, stack, out, sequential=sequential) == 0
    torch.testing.assert_close(out, wanted, rtol=1e-12, atol=1e-12)
    in_place = weight.clone()
    with threaded_scheduler() as scheduler:
        merged_into(in_place, stack, in_place, scheduler, sequential=sequential)
        scheduler.finish()
    assert torch.equal(in_place, out)
    if len(shape) == 2:
        turned = weight.t().contiguous()
        merged_into(turned, stack, turned, transposed=True, sequential=sequential)
        torch.testing.assert_close(turned.t(), wanted, rtol=1e-12, atol=1e-12)


def test_threads_do_not_change_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 1 << 14)
    weight, before, found = base((300, 700), torch.float64), torch.get_num_threads(), []
    stack = changes(next(v for v in VARIANTS if v[0].name == "loha"), (300, 700))
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(torch.empty_like(weight))
            with threaded_scheduler() as scheduler:
                merged_into(weight, stack, found[-1], scheduler.run_now)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_rows_without_a_change_keep_their_bits_and_overflow_is_counted() -> None:
    adapter = random_for(next(v for v in VARIANTS if v[0].name == "full"), (8, 10))
    assert adapter is not None
    weight = base((40, 10), torch.float16)
    weight[0, 0], weight[30, 1] = float("nan"), -0.0
    out = torch.empty_like(weight)
    assert merged_into(weight, [Change(adapter, 1.0, (8, 16))], out) == 0
    assert torch.equal(out.view(torch.int16)[:8], weight.view(torch.int16)[:8])
    assert torch.equal(out.view(torch.int16)[16:], weight.view(torch.int16)[16:])
    assert not torch.equal(out[8:16], weight[8:16])
    assert merged_into(weight, [Change(adapter, 1e7, (8, 16))], out) > 70


def test_no_thread_begins_once_a_weight_may_be_written() -> None:
    """One that is interrupted as it begins is known to nobody, and would write after the undoing."""
    before = set(threading.enumerate())
    with threaded_scheduler() as scheduler:
        begun = set(threading.enumerate()) - before
        assert len(begun) == torch.get_num_threads()
        for _ in range(20):
            scheduler(lambda rows: Effect(), [(0, 1), (1, 2)], lambda effect: None)
        scheduler.finish()
        assert set(threading.enumerate()) - before == begun


def test_an_interrupt_while_threads_begin_is_no_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thread waits for the second, which never comes."""
    submit, calls, ends = ThreadPoolExecutor.submit, [], []

    def interrupted(self: ThreadPoolExecutor, *arguments: Any) -> Any:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return submit(self, *arguments)

    def enter() -> None:
        try:
            with threaded_scheduler():
                ends.append("entered")
        except KeyboardInterrupt:
            ends.append("interrupted")

    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    one = threading.Thread(target=enter, daemon=True)
    one.start()
    one.join(30)
    assert ends == ["interrupted"]
