"""What is done to the rows of a tensor: the families' formula, with factors that are prepared once per weight."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding import Binding, solvable
from lyc_fx.families import Change, refuse_overflow
from lyc_fx.families.blocks import at_once, on_rows, row_blocks
from lyc_fx.families.eager import merged_rows, merged_whole, prepared
from lyc_fx.families.merged import sums_dtype
from lyc_fx.families.rounding import Rounding, Stochastic, nearest
from lyc_fx.fitting import Weight
from lyc_fx.folding.jobs import Compute, Cut

Seed = int | None
_KEPT = 2 * (os.cpu_count() or 1)
"""Weights whose prepared factors are kept: at least as many as are in work at once, or they are prepared twice"""


@final
@dataclass
class Merger:
    """The merge of every weight of one binding."""

    binding: Binding
    weights: Mapping[str, Weight]
    compute: torch.dtype | None = None
    seed: Seed = None
    """Of stochastic rounding; None rounds to the nearest"""
    notes: list[str] = field(default_factory=list)
    _ready: dict[str, list[Change]] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def cut(self, name: str) -> Cut | None:
        """How a weight is merged; None where it has no adapter. Stored `(in, out)`, it is read as a whole."""
        changes = self._changes(name)
        weight = self.weights[name]
        if not changes:
            return None
        if weight.transposed:
            return Cut([(0, weight.shape[0])], at_once(weight.shape[::-1], changes))
        return Cut(row_blocks(weight.shape, changes), at_once(weight.shape, changes))

    def _changes(self, name: str) -> list[Change]:
        return [bound.change(torch.device("cpu")) for bound in self.binding.active(name)]

    def _prepared(self, name: str) -> list[Change]:
        """A weight's changes; small factors already in the dtype of sums."""
        with self._lock:
            if name not in self._ready:
                while len(self._ready) > _KEPT:
                    self._ready.pop(next(iter(self._ready)))
                dtype = sums_dtype(self.compute, torch.device("cpu"))
                self._ready[name] = [prepared(change, dtype) for change in self._changes(name)]
            return self._ready[name]

    def of(self, prefix: str) -> Callable[[Compute, Tensor, Tensor], None]:
        """The merge of one file's tensors, whose names have a prefix in the binding."""
        return lambda job, rows, out: self.rows(prefix + job.name, job, rows, out)

    def rows(self, name: str, job: Compute, rows: Tensor, out: Tensor) -> None:
        """Some rows of a tensor, as they are stored → as they are written."""
        weight = self.weights[name]
        changes = self._prepared(name) if self.binding.active(name) else []
        if changes and job.whole:
            self.notes += self.binding.doubts(name, rows, transposed=weight.transposed)
        part = changes if job.whole else on_rows(changes, *job.rows, weight.shape)
        rounding: Rounding = nearest if self.seed is None else Stochastic(self.seed, f"{name} {job.rows[0]}")
        base, merged = (rows.t(), out.t()) if weight.transposed else (rows, out)
        merge = merged_whole if job.whole else merged_rows
        with solvable(name):
            merge(base, part, merged, compute=self.compute, sequential=self.binding.sequential, rounding=rounding)
        refuse_overflow(name, rows, out)
