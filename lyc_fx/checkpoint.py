"""The checkpoint road: adapters folded into safetensors files, without any model code."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, final

import torch
from torch import Tensor

from lyc_fx.binding import Binding, bind
from lyc_fx.errors import BadAdapter, LycFxError, Unsupported
from lyc_fx.families import Convention, Effect
from lyc_fx.files import path_of, sync
from lyc_fx.folding.base import Base, Part, based
from lyc_fx.folding.given import Given, as_weights, given_by, written
from lyc_fx.folding.given import notes as given_notes
from lyc_fx.folding.header import Layout, Stored, laid_out
from lyc_fx.folding.jobs import jobs
from lyc_fx.folding.merger import Merger
from lyc_fx.folding.output import written_to
from lyc_fx.folding.provenance import Provenance
from lyc_fx.folding.quantized import advice
from lyc_fx.folding.run import Progress, one_thread_each, read_back, run
from lyc_fx.folding.scaled import refuse_conversion
from lyc_fx.folding.sink import Sink
from lyc_fx.folding.ties import Tie, configuration, known_by, ties, with_aliases
from lyc_fx.naming.disk import names_in_memory
from lyc_fx.orientation import oriented, refuse_doubtful
from lyc_fx.report import Report
from lyc_fx.stack import Adapters, Blocks, stacked

Path_ = str | os.PathLike[str]
MEMORY = 512 * 2**20
"""Bytes that blocks in work, and results that wait for the disk, may need together"""


def fold_checkpoint(
    base: Path_,
    adapters: Adapters,
    out: Path_ | None,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    transposed: Iterable[str] = (),
    compute: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    component: str | Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    seed: int = 0,
    memory: int = MEMORY,
    verify: bool = False,
    resume: bool = False,
    force: bool = True,
    progress: Progress = lambda name, size: None,
) -> Report:
    """Fold adapters into a checkpoint: same keys, shapes and dtypes, merged weights.

    `base` is a safetensors file, an index of shards, or a folder of a model or a pipeline; then `out` is a new
    folder, which gets the configurations and tokenizers as well. `adapters`, the strengths, `convention` and
    `sequential` are as in `splice`.

    `component` is as in `merge`.

    `transposed` lists fnmatch patterns of weights that are stored `(in, out)` (Conv1D of GPT-2), and after a `!` of
    those that are not; only weights of whose orientation the bias says nothing need one (`lyc_fx.orientation`).
    `dtype` is another dtype for all floating tensors. `rounding="stochastic"` rounds to either neighbour, right on
    average; what is drawn depends on `seed`.

    Weights are read, merged and written in blocks by several threads; `memory` (bytes) bounds what these need.
    The bytes of the output do not depend on either. `verify` reads the output back from the disk. The metadata is
    kept, and says what was folded in, now and before (`lyc_fx.fold`: a list of digests, strengths, versions).

    Where a folder's config.json ties the head to the embedding, an adapter of one of them changes that one alone, as
    in training: both are written then, and the new configuration ties nothing.

    The output appears under its name only when it is whole; a file of that name, or a folder that lyc-fx wrote,
    is replaced, or with `force=False` an error. `resume` (for folders) keeps the shards that were done
    when it is interrupted, and goes on from there. Under torchrun each rank takes its share of the shards.

    With `out=None` nothing is written: everything else is done, and what a fold would raise is raised.

    Raises BadFile, BadAdapter and Unsupported (a packed dtype; another `dtype` for float8 in units of a scale); then
    there is no output, and an older file of that name is as it was.
    """
    target = None if out is None else path_of(out, "the output")
    if rounding not in ("nearest", "stochastic"):
        raise BadAdapter(f"there is no rounding {rounding!r}, only nearest and stochastic")
    stack = stacked(
        adapters,
        strength,
        convention=convention,
        sequential=sequential,
        allow_nonfinite=allow_nonfinite,
        component=component,
    )
    source = based(base)
    patterns = tuple(transposed)
    tied = ties(source)
    weights = oriented(known_by(source.weights(), tied), patterns)
    given = given_by(stack, source, weights)
    weights = as_weights(given, weights)
    try:
        binding = bind(stack, weights, strict=strict, elsewhere=partial(other_names, source))
    except BadAdapter as error:
        raise _explained(error, base, weights) from error
    if binding.report.refused and not binding.targets:
        raise BadAdapter(
            f"no adapter found a weight of {base}: there is nothing to fold, and the output would be a copy; "
            f"keys without effect: {len(binding.report.refused)}"
        )
    refuse_doubtful(weights, filter(binding.active, binding.targets), patterns)
    refuse_conversion(weights, dtype)
    untied = tuple(tie for tie in tied if tie.broken(binding))
    if untied and not source.folder:
        raise Unsupported(
            f"{base}: {untied[0].config} beside it says that {' and '.join(untied[0].names)} are one tensor, and the "
            f"adapters make them differ: fold the folder ({source.root.parent}), whose configuration is written anew"
        )
    source = with_aliases(source, {alias: name for tie in untied for alias, name in tie.aliases.items()})
    merger = Merger(binding, source, weights, compute, seed if rounding == "stochastic" else None)
    provenance = Provenance.of(stack, convention)
    both = [name for tie in tied for name in tie.names if name in given]
    if both:
        raise Unsupported(
            f"{both[0]} has other rows in the adapter than in the base, which ties it: untie the base first "
            "(load it, give the head a weight of its own, and save it)"
        )
    whole = written(given, binding, dtype)
    fold = Fold(source, merger, dtype, provenance, memory, verify, untied, given, whole)
    inputs = [base, *(part.adapters.source for part in stack.parts)]
    if target is None:
        for part in source.parts:
            fold.write(part, None, progress)
    else:
        written_to(target, fold, inputs, resume=resume, force=force, progress=progress)
    merger.effects |= dict.fromkeys(given, Effect(changed=True, delta=1.0))  # there is no base to compare with
    for tie in (each for each in tied if each not in untied):  # its other names have the effect of what is stored
        merger.effects |= {a: merger.effects[s] for a, s in tie.aliases.items() if s in merger.effects}
    folded = [note for part in source.parts for note in provenance.repeated(part.metadata)]
    notes = [*_notes(source), *given_notes(given), *(tie.note for tie in untied), *dict.fromkeys(folded), *merger.notes]
    report = binding.finished(merger.effects, notes)
    report.warn()
    return report


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
            _reserve(target, layout.bytes)
        waiting = self.memory // 4  # the rest is for blocks in work
        with Sink(target, layout.bytes, waiting, checksums=self.verify) as sink:
            sink.put(0, layout.header)
            run(part.path, sink, work, self.merger.of(part.prefix), memory=self.memory - waiting, progress=progress)
            for stored in layout.tensors[len(kept.tensors) :]:
                sink.put(stored.start, whole[stored.name].reshape(-1).view(torch.uint8).numpy().tobytes())
        if target is not None and sink.checksums is not None:
            sync(target)
            read_back(target, sink.checksums)


_FACTORS = (".lora_up.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks")


def _explained(error: BadAdapter, base: Path_, names: Iterable[str]) -> LycFxError:
    """The error, or what the base is that adapters cannot fit."""
    quantized = advice(base, names)
    if quantized is not None:
        return Unsupported(quantized)
    if any(name.endswith(_FACTORS) for name in names):
        return BadAdapter(f"{base}: is an adapter itself; the model comes first: lyc-fx fold BASE ADAPTER -o OUT")
    return error


def other_names(base: Base) -> dict[str, str]:
    """What the classes of a folder's models call the weights that are stored, to the stored names."""
    found: dict[str, str] = {}
    for inside in base.carried if base.folder else ():
        if inside.name == "config.json":
            prefix = ".".join(inside.parent.parts) + "." if inside.parent.parts else ""
            stored = [t.name for part in base.parts if part.prefix == prefix for t in part.layout.tensors]
            named = names_in_memory(configuration(base.root / inside), stored)
            found |= {prefix + memory: prefix + disk for memory, disk in named.items()}
    return found


def _reserve(target: Path, size: int) -> None:
    """A full disk is found out before the work. Raises OSError."""
    with target.open("r+b") as file:
        if hasattr(os, "posix_fallocate") and size:
            os.posix_fallocate(file.fileno(), 0, size)
        file.truncate(size)


def _notes(base: Base) -> list[str]:
    return [f"{path} was left out: it holds weights without the adapters" for path in base.left]
