"""What a fold writes into each file of the output."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding import Binding
from lyc_fx.folding.base import Base, Part
from lyc_fx.folding.given import Given
from lyc_fx.folding.header import Layout, Stored, laid_out
from lyc_fx.folding.jobs import jobs
from lyc_fx.folding.merger import Merger
from lyc_fx.folding.provenance import Provenance
from lyc_fx.folding.run import Progress, one_thread_each, read_back, run
from lyc_fx.folding.sink import Sink
from lyc_fx.folding.ties import Tie
from lyc_fx.system import reserve, sync_path


@final
@dataclass(frozen=True)
class Fold:
    """All that is to be written, apart from where."""

    base: Base
    merger: Merger
    dtype: torch.dtype | None
    provenance: Provenance
    memory: int
    verify: bool
    untied: tuple[Tie, ...] = ()
    """Whose tensors are written apart"""
    given: Mapping[str, Given] = field(default_factory=dict)
    """Tensors that the base has not, or not in this shape"""
    whole: Mapping[str, Tensor] = field(default_factory=dict)
    """Their values, as they are written"""

    @property
    def binding(self) -> Binding:
        return self.merger.binding

    def layout(self, part: Part) -> Layout:
        """Of the output's file."""
        wanted, kept, whole = self.dtype, self._kept(part).tensors, self._whole(part)
        dtypes = {t.name: wanted if wanted is not None and t.dtype.is_floating_point else t.dtype for t in kept}
        more = [Stored(name, value.dtype, tuple(value.shape), 0) for name, value in whole.items()]
        dtypes |= {each.name: each.dtype for each in more}
        return laid_out([*kept, *more], dtypes, self.provenance.added_to(part.metadata))

    def _kept(self, part: Part) -> Layout:
        """The base's file without the tensors that are given as a whole."""
        tensors = tuple(t for t in part.layout.tensors if part.prefix + t.name not in self.whole)
        return Layout(part.layout.header, tensors)

    def _whole(self, part: Part) -> dict[str, Tensor]:
        """What is written in this file besides: in the place of its own tensors, and in the last file new ones."""
        known = {each.prefix + t.name for each in self.base.parts for t in each.layout.tensors}
        own = {part.prefix + t.name for t in part.layout.tensors}
        alike = [each for each in self.base.parts if each.prefix == part.prefix]
        new = {n for n in self.whole if n not in known and n.startswith(part.prefix)} if part is alike[-1] else set()
        return {n.removeprefix(part.prefix): v for n, v in self.whole.items() if n in own | new}

    def write(self, part: Part, target: Path | None, progress: Progress) -> None:
        """Write the merged copy of one file; without a target compute it only."""
        layout = self.layout(part)
        kept, whole = self._kept(part), self._whole(part)
        with one_thread_each():
            cuts = {t.name: self.merger.cut(part.prefix + t.name) for t in kept.tensors}
        own = Layout(layout.header, layout.tensors[: len(kept.tensors)])
        work = jobs(kept, own, {name: cut for name, cut in cuts.items() if cut is not None})
        if target is not None:
            with target.open("r+b") as file:  # a full disk is found out before the work
                reserve(file.fileno(), layout.bytes)
        waiting = self.memory // 4  # the rest is for blocks in work
        with Sink(target, layout.bytes, waiting, checksums=self.verify) as sink:
            sink.put(0, layout.header)
            run(part.path, sink, work, self.merger.of(part.prefix), memory=self.memory - waiting, progress=progress)
            for stored in layout.tensors[len(kept.tensors) :]:
                sink.put(stored.start, whole[stored.name].reshape(-1).view(torch.uint8).numpy().tobytes())
        if target is not None and sink.checksums is not None:
            sync_path(target)
            read_back(target, sink.checksums)
