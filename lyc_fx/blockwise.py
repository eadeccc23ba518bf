"""Merged weights, computed and rounded in blocks of rows: no temporary is as large as a weight."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from threading import Barrier
from typing import final

import torch
from torch import Tensor

from lyc_fx.families import Change, Effect
from lyc_fx.families.blocks import Rows, on_rows, row_blocks
from lyc_fx.families.eager import merged_rows, prepared
from lyc_fx.families.merged import sums_dtype

Block = Callable[[Rows], Effect]
"""Computes some rows"""
Then = Callable[[Effect], None]
"""Is told the effect on all of a weight"""
Run = Callable[[Block, Sequence[Rows], Then], None]
"""Computes the blocks of a weight, now or later"""


def merging(
    weight: Tensor,
    stack: Sequence[Change],
    out: Tensor,
    *,
    transposed: bool = False,
    compute: torch.dtype | None = None,
    sequential: bool = False,
) -> tuple[Block, list[Rows]]:
    """The blocks of `out ← round(W + Σ change)`, as `families.merged`, in whatever order they are computed.

    `out` has the weight's shape, and its device and dtype are the result's; it may be the weight itself, for a block
    reads and writes its own rows alone. Where the blocks are cut depends on the shape and the adapters only, so that
    the result does not depend on how many threads compute them.
    """
    shape = tuple(weight.shape)[::-1] if transposed else tuple(weight.shape)
    base, target = (weight.t(), out.t()) if transposed else (weight, out)
    ready = [prepared(change, sums_dtype(compute, out.device)) for change in stack]
    cut = row_blocks(shape, ready, out.device)

    def block(rows: Rows) -> Effect:
        whole = len(cut) == 1  # also of a weight without dimensions
        before, after = (base, target) if whole else (base[slice(*rows)], target[slice(*rows)])
        changes = on_rows(ready, *rows, shape)
        with torch.inference_mode(out.is_inference()), torch.no_grad():  # a thread has modes of its own
            before = before.to(out.device)
            result = torch.empty_like(before, dtype=after.dtype)  # `after` may be the weight itself
            merged_rows(before, changes, result, compute=compute, sequential=sequential)
            effect = Effect.of(before, result)
            after.copy_(result)
        return effect

    return block, cut


def at_once(block: Block, rows: Sequence[Rows], then: Then) -> None:
    """A `Run` without threads."""
    then(sum(map(block, rows), Effect()))


@final
class Crew:
    """A `Run` by several threads, a few weights at a time; `finish` waits for all that was begun."""

    def __init__(self, pool: ThreadPoolExecutor, ahead: int) -> None:
        """`ahead` bounds the blocks that wait, as long as they are of several weights."""
        self._pool, self._ahead = pool, ahead
        self._begun: deque[tuple[list[Future[Effect]], Then]] = deque()

    def __call__(self, block: Block, rows: Sequence[Rows], then: Then) -> None:
        self._begun.append(([self._pool.submit(block, each) for each in rows], then))
        while len(self._begun) > 1 and sum(len(blocks) for blocks, _ in self._begun) > self._ahead:
            self._end_first()

    def now(self, block: Block, rows: Sequence[Rows], then: Then) -> None:
        """For a weight that is needed at once."""
        self(block, rows, then)
        self.finish()

    def finish(self) -> None:
        """Raises what a block, or the `then` of a weight, raised."""
        while self._begun:
            self._end_first()

    def _end_first(self) -> None:
        blocks, then = self._begun.popleft()
        then(sum((block.result() for block in blocks), Effect()))


@contextmanager
def threads() -> Iterator[Crew]:
    """As many threads as torch uses here, each of which computes alone. `finish` before the end: what has not begun by
    then never will.

    That is faster than blocks that are each spread over all threads, and no block's bits depend on their number.
    """
    count = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as pool:
            begun = Barrier(count + 1)  # an interrupt while a thread begins would leave it to itself: none begins later
            try:
                for _ in range(count):
                    pool.submit(begun.wait)
                begun.wait()
                yield Crew(pool, 4 * count)
            finally:
                begun.abort()  # else those that wait would for ever
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(count)  # else threads that begin later would take the workers' number
