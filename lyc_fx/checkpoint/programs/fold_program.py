"""Folding adapters into an exported program, without the model's code."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from lyc_fx.binding.bind import bind
from lyc_fx.binding.orientation import refuse_ambiguous, with_orientation
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Stack
from lyc_fx.checkpoint.merger import Merger
from lyc_fx.checkpoint.programs.archive import read_archive
from lyc_fx.checkpoint.programs.archive_end import finish_archive, tail_of
from lyc_fx.checkpoint.programs.crc import Crc
from lyc_fx.checkpoint.programs.description import refuse_adapters, repeated, texts_after
from lyc_fx.checkpoint.programs.onnx import read_onnx
from lyc_fx.checkpoint.programs.onnx_end import finish_onnx, kept_of, rename_data
from lyc_fx.checkpoint.programs.program import Program
from lyc_fx.checkpoint.programs.refusing import explained, refuse_odd, same_tensors
from lyc_fx.checkpoint.programs.stream import Computed, Made, copy_merged
from lyc_fx.checkpoint.provenance import Provenance
from lyc_fx.checkpoint.ranks import join_ranks
from lyc_fx.checkpoint.weight_norm import refuse_double_targets
from lyc_fx.checkpoint.workers import Progress, single_threaded_torch
from lyc_fx.errors import BadAdapter, NotApplicable, Unsupported
from lyc_fx.storage.files import replacing_together
from lyc_fx.storage.may_overwrite import Path_, free


@final
@dataclass(frozen=True)
class Ways:
    """How to fold."""

    transposed: tuple[str, ...]
    strict: bool
    lossy: bool
    memory: int
    verify: bool
    compute: torch.dtype | None
    seed: int | None
    """Of stochastic rounding; None rounds to the nearest"""
    progress: Progress


def read_program(path: Path) -> Program:
    """Find the weights of a `.pt2` or `.onnx`. Raises BadFile or Unsupported."""
    return read_onnx(path) if path.suffix == ".onnx" else read_archive(path)


def fold_program(path: Path, target: Path | None, stack: Stack, provenance: Provenance, ways: Ways) -> Report:
    """Fold a stack into a program, as `fold_checkpoint` says."""
    program = read_program(path)
    refuse_adapters(program)
    weights = with_orientation(program.weights(), ways.transposed)
    try:
        binding = bind(stack, weights, strict=ways.strict)
    except NotApplicable as error:
        raise explained(error, program) from error
    if binding.report.refused and not binding.targets:
        raise BadAdapter(
            f"{path}: no adapter matches a weight of it, so the output would be a plain copy; "
            f"adapter keys without effect: {len(binding.report.refused)}"
        )
    refuse_ambiguous(weights, filter(binding.active, binding.targets), ways.transposed)
    refuse_double_targets(weights, binding.targets)
    merger = Merger(binding, program.base(), weights, ways.compute, ways.seed)
    ties = same_tensors(program, binding)
    merged = _merged(program, merger, ties)
    refuse_odd(program, merged, ties)
    if target is None:
        for file in program.files:
            _copy(program, file, None, merged, merger, ways, _nothing)
        _refuse_rounded_away(merger, ways)
    else:
        inputs: list[Path_] = [*program.files, *(part.adapters.source for part in stack.parts)]
        with join_ranks() as ranks, ranks.together():
            free(target, inputs, folder=False, force=True, suffix=path.suffix)
            if ranks.first:
                _write(program, target, merged, merger, ways, texts_after(program, provenance))
    merger.effects |= {a: merger.effects[s] for a, s in ties.items() if s in merger.effects}
    report = binding.finished(merger.effects, [*repeated(program, provenance), *merger.notes])
    report.warn()
    return report


def _merged(program: Program, merger: Merger, ties: Mapping[str, str]) -> dict[str, Computed]:
    """The tensors to compute, each with its blocks; of tied ones the first."""
    with single_threaded_torch():
        found = {name: merger.blocks(name) for name in program.held if name not in ties}
    made = {name: (program.held[name], blocks) for name, blocks in found.items() if blocks is not None}
    for name, (held, _) in made.items():
        if held.turned and (merger.weights[name].scale is not None or not merger.binding.active(name)):
            raise Unsupported(
                f"{program.path}: {name}: of a weight under weight norm or a scale, and not stored in order"
            )
    return made


def _write(
    program: Program,
    target: Path,
    merged: Mapping[str, Computed],
    merger: Merger,
    ways: Ways,
    texts: Mapping[str, str],
) -> None:
    """Write all files of the output; they get their names together, if all goes well."""
    first, *others = program.files
    names = {each.name: f"{target.name}{f'.{i}' if i else ''}.data" for i, each in enumerate(others)}
    with replacing_together(target) as part:
        crcs: list[Crc] = []
        made: Made = _nothing if program.is_onnx else lambda start, values: crcs.append(Crc.of(start, values))
        _copy(program, first, part, merged, merger, ways, made)
        for each in others:
            _copy(program, each, part.with_name(names[each.name]), merged, merger, ways, _nothing)
        _refuse_rounded_away(merger, ways)
        if program.is_onnx:
            finish_onnx(part, texts)
        else:
            finish_archive(program, part, crcs, texts)
        if others:
            rename_data(part, names, target)


def _nothing(_start: int, _values: Tensor) -> None:
    """What is done after a block where no checksum is stored."""


def _copy(
    program: Program,
    file: Path,
    part: Path | None,
    merged: Mapping[str, Computed],
    merger: Merger,
    ways: Ways,
    made: Made,
) -> None:
    kept = [(0, file.stat().st_size)]
    if file == program.path:
        kept = kept_of(program) if program.is_onnx else [(0, tail_of(program))]
    own = {name: each for name, each in merged.items() if each[0].path == file}
    copy_merged(
        file, part, own, merger, kept=kept, memory=ways.memory, verify=ways.verify, progress=ways.progress, made=made
    )


def _refuse_rounded_away(merger: Merger, ways: Ways) -> None:
    merger.binding.report.measured(merger.effects).refuse_rounded_away(lossy=ways.lossy)
