"""What is done to the rows of a tensor: the families' formula, with factors that are prepared once per weight."""

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from threading import Lock
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding import Binding, solvable
from lyc_fx.errors import BadAdapter
from lyc_fx.families import Change, Effect
from lyc_fx.families.blocks import BLOCK, Rows, largest_piece, on_rows, row_blocks
from lyc_fx.families.eager import merged_rows, prepared
from lyc_fx.families.merged import sums_dtype
from lyc_fx.families.rounding import Rounding, Stochastic, nearest, round_into
from lyc_fx.families.widen import widened
from lyc_fx.fitting import Weight
from lyc_fx.folding.base import Base
from lyc_fx.folding.jobs import Compute, Cut
from lyc_fx.folding.normed import effective, stored
from lyc_fx.folding.run import TEMPORARIES, threads
from lyc_fx.folding.scaled import Scale, for_rows, greatest, rescaled

Seed = int | None
_KEPT = 2 * (os.cpu_count() or 1)
"""Weights whose prepared factors are kept: at least as many as are in work at once, or they are prepared twice"""


@final
@dataclass
class Merger:
    """The merge of every weight of one binding."""

    binding: Binding
    source: Base
    weights: Mapping[str, Weight]
    compute: torch.dtype | None = None
    seed: Seed = None
    """Of stochastic rounding; None rounds to the nearest"""
    notes: list[str] = field(default_factory=list)
    effects: dict[str, Effect] = field(default_factory=dict)
    """On each weight, of the rows that are done"""
    _ready: dict[str, list[Change]] = field(default_factory=dict)
    _scales: dict[str, Scale] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def cut(self, name: str) -> Cut | None:
        """How a tensor is made; None where it is copied. A weight stored `(in, out)` is read as a whole.

        What becomes of a scale is found out here, by several threads, for which the weight is merged once more.
        """
        if name in self._scaled:
            return Cut([(0, self.weights[name].height)], BLOCK) if self._scale(self._scaled[name]).changed else None
        if name in self._normed:
            return Cut([(0, self.weights[name].height)], BLOCK)
        changes = self._changes(name)
        if changes and self.weights[name].scale is not None:
            self._scale(name)
        return self._cut(name, changes) if changes else None

    def _cut(self, name: str, changes: list[Change]) -> Cut:
        weight = self.weights[name]
        blocks = [(0, weight.shape[0])] if weight.transposed else row_blocks(weight.shape, changes)
        largest = largest_piece(weight.logical, changes)
        if weight.scale is not None:  # what it means is in memory as a whole block, in the dtype of sums
            largest += max(stop - start for start, stop in blocks) * prod(weight.shape[1:]) // TEMPORARIES
        return Cut(blocks, largest)

    @cached_property
    def _scaled(self) -> dict[str, str]:
        """The weights with adapters that are in units of a scale, by the scale's name."""
        active = filter(self.binding.active, self.binding.targets)
        return {scale: name for name in active if (scale := self.weights[name].scale) is not None}

    @cached_property
    def _normed(self) -> dict[str, str]:
        """The weights with adapters that are computed, by the names of the tensors that they are computed from."""
        active = [n for n in filter(self.binding.active, self.binding.targets) if self.weights[n].normed is not None]
        parts = {name: self.weights[name].normed for name in active}
        return {p: name for name, n in parts.items() if n is not None for p in (n.direction, n.magnitude)}

    def _scale(self, name: str) -> Scale:
        """Of a weight that has one."""
        if name not in self._scales:
            scale, changes = self.weights[name].scale, self._changes(name)
            assert scale is not None
            old = self.source.rows(scale, 0, self.weights[scale].height)
            if self.weights[name].transposed and old.numel() > 1:
                raise BadAdapter(f"{name} is stored (in, out), and {scale} has a number for each row")

            def measured(block: Rows) -> Tensor:
                rows = self.source.rows(name, *block)
                return greatest(self._real(name, block, rows, old), old)

            with ThreadPoolExecutor(threads()) as pool:
                parts = list(pool.map(measured, self._cut(name, changes).blocks))
            self._scales[name] = rescaled(scale, old, parts, self.weights[name].dtype)
        return self._scales[name]

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
        if name in self._scaled:
            out.copy_(self._scale(self._scaled[name]).new)
            return
        if name in self._normed:
            out.copy_(self._part(self._normed[name], name, out.dtype))
            return
        rounding = self._rounding(f"{name} {job.rows[0]}")
        if self.weights[name].scale is not None and self.binding.active(name):
            scale = self._scale(name)
            real = self._real(name, job.rows, rows, scale.old)
            unit = for_rows(scale.new, *job.rows, real)
            real /= unit.masked_fill(unit == 0, 1)  # of rows that are zero
            round_into(out, real, rounding)
        else:
            self._merge(name, job.rows, rows, out, rounding)
        self._measure(name, rows, out)

    def _rounding(self, place: str) -> Rounding:
        return nearest if self.seed is None else Stochastic(self.seed, place)

    def _part(self, name: str, part: str, dtype: torch.dtype) -> Tensor:
        """One of the two tensors from which a merged weight is computed. The weight is merged once for each."""
        normed = self.weights[name].normed
        assert normed is not None
        direction, magnitude = (
            self.source.rows(each, 0, self.weights[each].height) for each in (normed.direction, normed.magnitude)
        )
        before = effective(direction, magnitude, normed)
        after = torch.empty_like(before, dtype=dtype)
        self._merge(name, (0, self.weights[name].height), before, after, self._rounding(name))
        if part == normed.direction:
            self._measure(name, before, after)
        return stored(after, normed, part)

    def _measure(self, name: str, rows: Tensor, out: Tensor) -> None:
        effect = Effect.of(rows, out)
        adapted = bool(self.binding.active(name))
        allowed = self.binding.allow_nonfinite or not adapted  # then it only gets another dtype
        effect.refuse(name, out.dtype, out.numel(), allow_nonfinite=allowed)
        if adapted:
            with self._lock:
                self.effects[name] = self.effects.get(name, Effect()) + effect

    def _real(self, name: str, block: Rows, codes: Tensor, scale: Tensor) -> Tensor:
        """Merged rows of a weight that is in units of a scale, in the dtype of sums."""
        rows = widened(codes, sums_dtype(self.compute, codes.device))
        rows *= for_rows(scale, *block, rows)
        self._merge(name, block, rows, rows, nearest)
        return rows

    def _merge(self, name: str, block: Rows, rows: Tensor, out: Tensor, rounding: Rounding) -> None:
        weight = self.weights[name]
        whole = block == (0, weight.height)
        changes = self._prepared(name) if self.binding.active(name) else []
        if changes and whole:
            doubts = self.binding.doubts(name, rows, transposed=weight.transposed)
            self.notes += [doubt for doubt in doubts if doubt not in self.notes]
        part = changes if whole else on_rows(changes, *block, weight.shape)
        base, merged = (rows.t(), out.t()) if weight.transposed else (rows, out)
        with solvable(name):
            merged_rows(
                base,
                part,
                merged,
                compute=self.compute,
                sequential=self.binding.sequential,
                rounding=rounding,
                stored=weight.dtype if weight.scale is not None else None,
            )
