"""Merging blocks of rows by the formula of the adapter families, with factors that are prepared once per weight."""

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

from lyc_fx.binding.bound import Binding, solvable
from lyc_fx.binding.fitting import Weight
from lyc_fx.checkpoint.base import Base
from lyc_fx.checkpoint.jobs import Blocks, Compute
from lyc_fx.checkpoint.scaled import Scale, fit_scale, max_abs, scale_of_rows, unscaled
from lyc_fx.checkpoint.weight_norm import compute_weight, split_weight
from lyc_fx.checkpoint.workers import TEMPORARIES, thread_count
from lyc_fx.errors import BadAdapter
from lyc_fx.merging.blocks import BLOCK, Rows, largest_piece, on_rows, row_blocks
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.inplace import merged_rows, prepared
from lyc_fx.merging.merged import Change, sums_dtype
from lyc_fx.numerics.rounding import Rounding, Stochastic, nearest, round_into

Seed = int | None
_CACHED = 2 * (os.cpu_count() or 1)
"""How many weights keep their prepared factors: no fewer than are merged at once, or some would be prepared twice"""


@final
@dataclass
class Merger:
    """Merges every weight of a binding, block by block, from several threads."""

    binding: Binding
    source: Base
    weights: Mapping[str, Weight]
    compute: torch.dtype | None = None
    seed: Seed = None
    """The seed of stochastic rounding; None rounds to the nearest"""
    effects: dict[str, Effect] = field(default_factory=dict)
    """The effect on each weight, summed over the rows that are done"""
    _doubts: dict[str, list[str]] = field(default_factory=dict)
    _prepared_changes: dict[str, list[Change]] = field(default_factory=dict)
    _scales: dict[str, Scale] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    @property
    def notes(self) -> list[str]:
        """What to tell the user, by weight in the order of the binding, whichever thread came first."""
        return [doubt for name in self.binding.targets for doubt in self._doubts.get(name, ())]

    def blocks(self, name: str) -> Blocks | None:
        """Return the blocks in which a tensor is merged, or None if it is copied unchanged.

        A weight that is stored `(in, out)` is a single block. For a weight in units of a scale, the new scale is
        computed here, which merges the weight once more, in several threads.
        """
        if name in self._scaled:
            return Blocks([(0, self.weights[name].height)], BLOCK) if self._scale(self._scaled[name]).changed else None
        if name in self._normed:
            return Blocks([(0, self.weights[name].height)], BLOCK)
        changes = self._changes(name)
        if changes and self.weights[name].scale is not None:
            self._scale(name)
        return self._row_blocks(name, changes) if changes else None

    def _row_blocks(self, name: str, changes: list[Change]) -> Blocks:
        weight = self.weights[name]
        blocks = [(0, weight.shape[0])] if weight.transposed else row_blocks(weight.shape, changes)
        largest = largest_piece(weight.logical, changes)
        if weight.scale is not None:  # the unscaled block is in memory as a whole, in the dtype of the sums
            largest += max(stop - start for start, stop in blocks) * prod(weight.shape[1:]) // TEMPORARIES
        return Blocks(blocks, largest)

    @cached_property
    def _scaled(self) -> dict[str, str]:
        """From the name of each scale to the adapted weight that is in units of it."""
        active = filter(self.binding.active, self.binding.targets)
        return {scale: name for name in active if (scale := self.weights[name].scale) is not None}

    @cached_property
    def _normed(self) -> dict[str, str]:
        """From the names of direction and magnitude to the adapted weight that weight norm computes from them."""
        active = [
            n for n in filter(self.binding.active, self.binding.targets) if self.weights[n].weight_norm is not None
        ]
        parts = {name: self.weights[name].weight_norm for name in active}
        return {p: name for name, n in parts.items() if n is not None for p in (n.direction, n.magnitude)}

    def _scale(self, name: str) -> Scale:
        """Return the scale of a weight before and after the merge. Raises BadAdapter if it cannot be computed."""
        if name not in self._scales:
            scale, changes = self.weights[name].scale, self._changes(name)
            assert scale is not None
            old = self.source.rows(scale, 0, self.weights[scale].height)
            if self.weights[name].transposed and old.numel() > 1:
                raise BadAdapter(
                    f"{name} is stored (in, out) and {scale} has one number for each row, which lyc-fx cannot merge: "
                    "leave its adapters out"
                )

            def measured(block: Rows) -> Tensor:
                rows = self.source.rows(name, *block)
                return max_abs(self._merge_scaled(name, block, rows, old), old)

            with ThreadPoolExecutor(thread_count()) as pool:
                parts = list(pool.map(measured, self._row_blocks(name, changes).blocks))
            self._scales[name] = fit_scale(scale, old, parts, self.weights[name].dtype)
        return self._scales[name]

    def _changes(self, name: str) -> list[Change]:
        return [bound.change(torch.device("cpu")) for bound in self.binding.active(name)]

    def _prepared(self, name: str) -> list[Change]:
        """Return a weight's changes, with small factors converted to the dtype of the sums; cached."""
        with self._lock:
            if name not in self._prepared_changes:
                while len(self._prepared_changes) > _CACHED:
                    self._prepared_changes.pop(next(iter(self._prepared_changes)))
                dtype = sums_dtype(self.compute, torch.device("cpu"))
                self._prepared_changes[name] = [prepared(change, dtype) for change in self._changes(name)]
            return self._prepared_changes[name]

    def for_prefix(self, prefix: str) -> Callable[[Compute, Tensor, Tensor], None]:
        """Return `merge_rows` for the tensors of one file, whose full names start with `prefix`."""
        return lambda job, rows, out: self.merge_rows(prefix + job.name, job, rows, out)

    def merge_rows(self, name: str, job: Compute, rows: Tensor, out: Tensor) -> None:
        """Merge some rows of a tensor into `out`: from the values that the base stores to those of the output.

        Raises BadAdapter if a merged value overflows, or if the base is not finite (unless `allow_nonfinite`).
        """
        if name in self._scaled:
            out.copy_(self._scale(self._scaled[name]).new)
            return
        if name in self._normed:
            out.copy_(self._merge_weight_norm(self._normed[name], name, out.dtype))
            return
        rounding = self._rounding(f"{name} {job.rows[0]}")
        if self.weights[name].scale is not None and self.binding.active(name):
            scale = self._scale(name)
            real = self._merge_scaled(name, job.rows, rows, scale.old)
            unit = scale_of_rows(scale.new, *job.rows, real)
            round_into(out, real / unit.masked_fill(unit == 0, 1), rounding)  # that of a row of zeros may be zero
            before = unscaled(rows, scale.old, job.rows, torch.float64)
            after = unscaled(out, scale.new, job.rows, torch.float64)
            self._measured(name, Effect.of(before, after, real), out)
        else:
            self._measured(name, self._merge(name, job.rows, rows, out, rounding), out)

    def _rounding(self, place: str) -> Rounding:
        return nearest if self.seed is None else Stochastic(self.seed, place)

    def _merge_weight_norm(self, name: str, part: str, dtype: torch.dtype) -> Tensor:
        """Return direction or magnitude of a merged weight under weight norm; each call merges the weight."""
        weight_norm = self.weights[name].weight_norm
        assert weight_norm is not None
        direction, magnitude = (
            self.source.rows(each, 0, self.weights[each].height)
            for each in (weight_norm.direction, weight_norm.magnitude)
        )
        before = compute_weight(direction, magnitude, weight_norm)
        after = torch.empty_like(before, dtype=dtype)
        effect = self._merge(name, (0, self.weights[name].height), before, after, self._rounding(name))
        if part == weight_norm.direction:
            self._measured(name, effect, after)
        return split_weight(after, weight_norm, part)

    def _measured(self, name: str, effect: Effect, out: Tensor) -> None:
        """Add an effect on some rows of a weight to its others; `out` is what is stored of them. Raises BadAdapter."""
        adapted = bool(self.binding.active(name))
        allowed = self.binding.allow_nonfinite or not adapted  # without adapters, only the dtype changes
        effect.refuse(name, out.dtype, out.numel(), allow_nonfinite=allowed)
        if adapted:
            with self._lock:
                self.effects[name] = self.effects.get(name, Effect()) + effect

    def _merge_scaled(self, name: str, block: Rows, codes: Tensor, scale: Tensor) -> Tensor:
        """Return merged rows of a weight in units of a scale, multiplied by the scale, in the dtype of the sums."""
        rows = unscaled(codes, scale, block, sums_dtype(self.compute, codes.device))
        self._merge(name, block, rows, rows, nearest)
        return rows

    def _merge(self, name: str, block: Rows, rows: Tensor, out: Tensor, rounding: Rounding) -> Effect:
        weight = self.weights[name]
        whole = block == (0, weight.height)
        changes = self._prepared(name) if self.binding.active(name) else []
        if changes and whole:
            doubts = self.binding.doubts(name, rows, transposed=weight.transposed)
            with self._lock:
                self._doubts[name] = doubts
        part = changes if whole else on_rows(changes, *block, weight.shape)
        base, merged = (rows.t(), out.t()) if weight.transposed else (rows, out)
        with solvable(name):
            return merged_rows(
                base,
                part,
                merged,
                compute=self.compute,
                sequential=self.binding.sequential,
                rounding=rounding,
                stored=weight.dtype if weight.scale is not None else None,
            )
