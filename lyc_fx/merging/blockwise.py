"""Merging a weight in memory in blocks of rows, so that no temporary is as large as the weight."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Barrier
from typing import final

import torch
from torch import Tensor

from lyc_fx.merging.blocks import Rows, on_rows, row_blocks
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.inplace import merged_rows, prepared
from lyc_fx.merging.merged import Change, sums_dtype

ComputeRows = Callable[[Rows], Effect]
"""Merges one block of rows, and returns its effect"""
OnDone = Callable[[Effect], None]
"""Called with the effect on the whole weight when all its blocks are done"""
Scheduler = Callable[[ComputeRows, Sequence[Rows], OnDone], None]
"""Runs `ComputeRows` on all blocks of a weight, now or later, and then `OnDone`"""


def block_merger(
    weight: Tensor,
    stack: Sequence[Change],
    out: Tensor,
    *,
    transposed: bool = False,
    compute: torch.dtype | None = None,
    sequential: bool = False,
) -> tuple[ComputeRows, list[Rows]]:
    """Prepare `out ← round(W + Σ change)`, as in `families.merged`, split into blocks of rows.

    `weight` has the shape `(out, in/groups, *kernel)`, or `(in, out)` if `transposed`. `out` has the same shape; it
    determines the device and dtype of the result, and may be the weight itself, since a block reads and writes only its
    own rows. `compute` is the dtype of the sums (None: the default of `sums_dtype`). With `sequential`, each change is
    applied to the result of the one before.

    Returns the function that merges one block, and the blocks, which may be computed in any order. The blocks depend
    only on the shape and the adapters, so the result does not depend on the number of threads.
    """
    shape = tuple(weight.shape)[::-1] if transposed else tuple(weight.shape)
    base, target = (weight.t(), out.t()) if transposed else (weight, out)
    ready = [prepared(change, sums_dtype(compute, out.device)) for change in stack]
    cut = row_blocks(shape, ready, out.device)

    def block(rows: Rows) -> Effect:
        whole = len(cut) == 1  # a scalar, too, is one block
        before, after = (base, target) if whole else (base[slice(*rows)], target[slice(*rows)])
        changes = on_rows(ready, *rows, shape)
        with torch.inference_mode(out.is_inference()), torch.no_grad():  # these modes are per thread
            before = before.to(out.device)
            result = torch.empty_like(before, dtype=after.dtype)  # `after` may be the weight itself
            effect = merged_rows(before, changes, result, compute=compute, sequential=sequential)
            after.copy_(result)
        return effect

    return block, cut


def run_serially(block: ComputeRows, rows: Sequence[Rows], on_done: OnDone) -> None:
    """Run all blocks in the calling thread: a `Scheduler` without threads."""
    on_done(sum(map(block, rows), Effect()))


@final
class ThreadedScheduler:
    """A `Scheduler` that runs blocks in several threads, a few weights at a time. Call `finish` at the end."""

    def __init__(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """`ahead` bounds the number of submitted blocks, unless they all belong to one weight."""
        self._pool, self._ahead = pool, ahead
        self._begun: deque[tuple[list[Future[Effect]], OnDone]] = deque()

    def __call__(self, block: ComputeRows, rows: Sequence[Rows], on_done: OnDone) -> None:
        self._begun.append(([self._pool.submit(block, each) for each in rows], on_done))
        while len(self._begun) > 1 and sum(len(blocks) for blocks, _ in self._begun) > self._ahead:
            self._end_first()

    def run_now(self, block: ComputeRows, rows: Sequence[Rows], on_done: OnDone) -> None:
        """Compute the blocks of a weight and wait for them, and for all weights before it."""
        self(block, rows, on_done)
        self.finish()

    def finish(self) -> None:
        """Wait for all weights. Raises what a block, or the `on_done` of a weight, raised."""
        while self._begun:
            self._end_first()

    def _end_first(self) -> None:
        blocks, on_done = self._begun.popleft()
        on_done(sum((block.result() for block in blocks), Effect()))


@contextmanager
def threaded_scheduler() -> Iterator[ThreadedScheduler]:
    """Provide a scheduler with as many threads as torch uses here; each computes its blocks with one torch thread.

    Call `finish` before leaving the context, which cancels all blocks that have not started. This is faster than
    spreading each block over all threads, and the result does not depend on their number.
    """
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as pool:
            # All threads start here: if Ctrl-C came while the pool starts one later, nothing would wait for it.
            begun = Barrier(count + 1)
            try:
                for _ in range(count):
                    pool.submit(begun.wait)
                begun.wait()
                yield ThreadedScheduler(pool, 4 * count)
            finally:
                begun.abort()  # else threads that wait at it would wait forever
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(count)  # else threads started later would inherit the workers' setting
