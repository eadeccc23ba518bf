"""A merged weight, computed and rounded in blocks of rows: no temporary is as large as the weight."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from lyc_fx.allocator import kept
from lyc_fx.families import Change, overflowed
from lyc_fx.families.blocks import Rows, on_rows, row_blocks
from lyc_fx.families.eager import merged_rows, prepared
from lyc_fx.families.merged import sums_dtype

Run = Callable[[Callable[[Rows], int], Iterable[Rows]], Iterable[int]]
"""`map`, or one that computes several blocks at a time"""


def merged_into(
    weight: Tensor,
    stack: Sequence[Change],
    out: Tensor,
    run: Run = map,
    *,
    transposed: bool = False,
    compute: torch.dtype | None = None,
    sequential: bool = False,
) -> int:
    """`out ← round(W + Σ change)`, as `families.merged`; how many finite values overflowed.

    `out` has the weight's shape, and its device and dtype are the result's; it may be the weight itself, for a block
    reads and writes its own rows alone. Where the blocks are cut depends on the shape and the adapters only, so that
    the result does not depend on how many threads compute them.
    """
    shape = tuple(weight.shape)[::-1] if transposed else tuple(weight.shape)
    base, target = (weight.t(), out.t()) if transposed else (weight, out)
    ready = [prepared(change, sums_dtype(compute, out.device)) for change in stack]

    def block(rows: Rows, piece: slice | None = None) -> int:
        before, after = (base, target) if piece is None else (base[piece], target[piece])
        changes = on_rows(ready, *rows, shape)
        with torch.inference_mode(out.is_inference()), torch.no_grad():  # a thread has modes of its own
            before = before.to(out.device)
            result = torch.empty_like(before, dtype=after.dtype)  # `after` may be the weight itself
            merged_rows(before, changes, result, compute=compute, sequential=sequential)
            lost = overflowed(before, result)
            after.copy_(result)
        return lost

    blocks = row_blocks(shape, ready)
    if len(blocks) == 1:
        return block(blocks[0])
    return sum(run(lambda rows: block(rows, slice(*rows)), blocks))


@contextmanager
def threads() -> Iterator[Run]:
    """A `map` over as many threads as torch uses here, each of which computes alone.

    That is faster than blocks that are each spread over all threads, and no block's bits depend on their number.
    """
    count = torch.get_num_threads()
    try:
        with kept(), ThreadPoolExecutor(count, initializer=partial(torch.set_num_threads, 1)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(count)  # else threads that begin later would take the workers' number
