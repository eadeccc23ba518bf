"""Copying a file of a program, with its weights merged on the way."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lyc_fx.checkpoint.jobs import Blocks, Compute, make_jobs
from lyc_fx.checkpoint.merger import Merger
from lyc_fx.checkpoint.programs.program import Held
from lyc_fx.checkpoint.sink import Sink
from lyc_fx.checkpoint.workers import Progress, read_back, run_jobs
from lyc_fx.storage.header import Layout, Stored
from lyc_fx.storage.system import reserve, sync_path

Computed = tuple[Held, Blocks]
"""A weight, and the blocks in which it is merged"""
Made = Callable[[int, Tensor], None]
"""Called with the first byte of a merged block in the output, and its values"""


def copy_merged(
    path: Path,
    target: Path | None,
    merged: Mapping[str, Computed],
    merger: Merger,
    *,
    kept: Iterable[tuple[int, int]],
    memory: int,
    verify: bool,
    progress: Progress,
    made: Made,
) -> None:
    """Copy the ranges `kept` of a file, one after another, with `merged` weights; with `target=None`, only compute.

    Calls `made` after each block of a weight, from several threads.

    Raises as `Merger.merge_rows`, and BadFile or OSError for a failed write.
    """
    weights = [held.stored for held, _ in merged.values()]
    old, new = _layouts(weights, kept, path.name)

    def merge(job: Compute, rows: Tensor, out: Tensor) -> None:
        held = merged[job.name][0]
        if held.turned:
            seen, result = held.seen(rows).contiguous(), torch.empty(held.shape, dtype=out.dtype)
            merger.merge_rows(job.name, replace(job, rows=(0, held.shape[0])), seen, result)
            held.seen(out).copy_(result)
        else:
            merger.merge_rows(job.name, job, rows, out)
        made(job.target_bytes[0], out)

    blocks = {
        name: Blocks([(0, held.stored.shape[0])], each.at_once) if held.turned else each
        for name, (held, each) in merged.items()
    }
    if target is not None:
        with target.open("wb") as file:
            reserve(file.fileno(), new.bytes)
    with Sink(target, new.bytes, memory // 4, checksums=verify) as sink:
        run_jobs(path, sink, make_jobs(old, new, blocks), merge, memory=memory - memory // 4, progress=progress)
    if target is not None and sink.checksums is not None:
        sync_path(target)
        read_back(target, sink.checksums)


def _layouts(weights: Iterable[Stored], kept: Iterable[tuple[int, int]], rest: str) -> tuple[Layout, Layout]:
    """The weights and the bytes between them (named `rest`), as they are in a file and as they will be in its copy."""
    pending = sorted(weights, key=lambda each: each.start, reverse=True)
    old: list[Stored] = []
    new: list[Stored] = []
    position = 0

    def add(piece: Stored) -> None:
        nonlocal position
        old.append(piece)
        new.append(replace(piece, start=position))
        position += piece.bytes

    for first, stop in kept:
        start = first
        while pending and pending[-1].start < stop:
            weight = pending.pop()
            add(Stored(rest, torch.uint8, (weight.start - start,), start))
            add(weight)
            start = weight.start + weight.bytes
        add(Stored(rest, torch.uint8, (stop - start,), start))
    assert not pending
    return Layout(b"", tuple(old)), Layout(b"", tuple(new))
