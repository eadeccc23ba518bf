"""Writing the merged copy of each file of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding.bound import Binding
from lyc_fx.checkpoint.base import Base, Part
from lyc_fx.checkpoint.jobs import make_jobs
from lyc_fx.checkpoint.merger import Merger
from lyc_fx.checkpoint.new_tensors import NewTensor
from lyc_fx.checkpoint.provenance import Provenance
from lyc_fx.checkpoint.sink import Sink
from lyc_fx.checkpoint.ties import Tie
from lyc_fx.checkpoint.workers import Progress, read_back, run_jobs, single_threaded_torch
from lyc_fx.storage.header import Layout, Stored, lay_out
from lyc_fx.storage.system import reserve, sync_path


@final
@dataclass(frozen=True)
class Fold:
    """Everything about a fold except where the output goes."""

    base: Base
    merger: Merger
    dtype: torch.dtype | None
    provenance: Provenance
    memory: int
    verify: bool
    lossy: bool = False
    """Whether less than half of the changes may be left after rounding"""
    untied: tuple[Tie, ...] = ()
    """Ties that the adapters break: their tensors are written separately"""
    new_tensors: Mapping[str, NewTensor] = field(default_factory=dict)
    """Tensors that the base lacks, or has in another shape, by name"""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """The merged values of `new_tensors`, in the dtype of the output"""

    @property
    def binding(self) -> Binding:
        """The adapters, bound to the base's weights."""
        return self.merger.binding

    def refuse_rounded_away(self) -> None:
        """Raise BadAdapter, unless `lossy`, if too little of the changes is left in what has been written."""
        self.binding.report.measured(self.merger.effects).refuse_rounded_away(lossy=self.lossy)

    def layout(self, part: Part) -> Layout:
        """Return the layout of the output file for a file of the base."""
        wanted, kept, whole = self.dtype, self._kept(part).tensors, self._whole(part)
        dtypes = {t.name: wanted if wanted is not None and t.dtype.is_floating_point else t.dtype for t in kept}
        more = [Stored(name, value.dtype, tuple(value.shape), 0) for name, value in whole.items()]
        dtypes |= {each.name: each.dtype for each in more}
        return lay_out([*kept, *more], dtypes, self.provenance.add_to(part.metadata))

    def _kept(self, part: Part) -> Layout:
        """Return the layout of a base file without the tensors that `whole` replaces."""
        tensors = tuple(t for t in part.layout.tensors if part.prefix + t.name not in self.whole)
        return Layout(part.layout.header, tensors)

    def _whole(self, part: Part) -> dict[str, Tensor]:
        """Return the tensors of `whole` for this file: replacements of its own, and in the last file the new ones."""
        known = {each.prefix + t.name for each in self.base.parts for t in each.layout.tensors}
        own = {part.prefix + t.name for t in part.layout.tensors}
        alike = [each for each in self.base.parts if each.prefix == part.prefix]
        new = {n for n in self.whole if n not in known and n.startswith(part.prefix)} if part is alike[-1] else set()
        return {n.removeprefix(part.prefix): v for n, v in self.whole.items() if n in own | new}

    def write(self, part: Part, target: Path | None, progress: Progress) -> None:
        """Write the merged copy of one file. With `target=None`, only compute it.

        Raises BadAdapter for a merged weight that overflows or is not finite, BadFile or OSError for a failed write.
        """
        layout = self.layout(part)
        kept, whole = self._kept(part), self._whole(part)
        with single_threaded_torch():
            computed = {t.name: self.merger.blocks(part.prefix + t.name) for t in kept.tensors}
        own = Layout(layout.header, layout.tensors[: len(kept.tensors)])
        work = make_jobs(kept, own, {name: blocks for name, blocks in computed.items() if blocks is not None})
        if target is not None:
            with target.open("r+b") as file:  # so that a full disk is an error before the work starts
                reserve(file.fileno(), layout.bytes)
        waiting = self.memory // 4  # for results that wait to be written; the rest is for blocks being computed
        with Sink(target, layout.bytes, waiting, checksums=self.verify) as sink:
            sink.write(0, layout.header)
            run_jobs(
                part.path,
                sink,
                work,
                self.merger.for_prefix(part.prefix),
                memory=self.memory - waiting,
                progress=progress,
            )
            for stored in layout.tensors[len(kept.tensors) :]:
                sink.write(stored.start, whole[stored.name].reshape(-1).view(torch.uint8).numpy().tobytes())
        if target is not None and sink.checksums is not None:
            sync_path(target)
            read_back(target, sink.checksums)
