"""The checkpoint road: fold adapters into safetensors files, without any model code."""

import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from typing import get_args

import torch

from lyc_fx.binding.bind import bind
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.orientation import refuse_ambiguous, with_orientation
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.checkpoint.base import Base, is_program, open_base
from lyc_fx.checkpoint.classes import other_names
from lyc_fx.checkpoint.fold import Fold
from lyc_fx.checkpoint.merger import Merger
from lyc_fx.checkpoint.new_tensors import describe as describe_new_tensors
from lyc_fx.checkpoint.new_tensors import find_new_tensors, merge_new_tensors, with_new_shapes
from lyc_fx.checkpoint.output import write_output
from lyc_fx.checkpoint.provenance import Provenance
from lyc_fx.checkpoint.quantized import explain_quantized
from lyc_fx.checkpoint.scaled import refuse_conversion
from lyc_fx.checkpoint.ties import find_ties, with_aliases, with_tied_names
from lyc_fx.checkpoint.weight_norm import refuse_double_targets
from lyc_fx.checkpoint.workers import Progress
from lyc_fx.choices import Convention, Rounding
from lyc_fx.errors import BadAdapter, BadFile, LycFxError, NotApplicable, Unsupported
from lyc_fx.merging.effect import Effect
from lyc_fx.storage.files import path_of

Path_ = str | os.PathLike[str]
MEMORY = 512 * 2**20
"""Default limit, in bytes, for the blocks being computed and the results that wait for the disk"""


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
    lossy: bool = False,
    component: str | Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
    rounding: Rounding = "nearest",
    seed: int = 0,
    memory: int = MEMORY,
    verify: bool = False,
    resume: bool = False,
    force: bool = False,
    progress: Progress = lambda name, size: None,
) -> Report:
    """Fold adapters into a checkpoint: merge the weights, and keep all keys, shapes and dtypes.

    `base` is a safetensors file, an index of shards, or the folder of a model or a pipeline. For an index or a folder,
    `out` is a new folder, into which configurations and tokenizers are copied. Or it is a program, `.pt2` or `.onnx`,
    of `lyc_fx.export`, `torch.export.save` or `torch.onnx.export(…, optimize=False)`: its weights change in their
    places, and all else of it stays; files beside an .onnx are copied as `<out>.data`. With `out=None` nothing is
    written, but everything else is done, and every error of a fold is raised.

    `adapters`, `strength`, `strict`, `convention` and `sequential` are as in `splice`; `compute`, `allow_nonfinite`,
    `lossy` and `component` as in `merge`.

    `transposed` lists fnmatch patterns of weights that are stored `(in, out)`, as in GPT-2's Conv1D; a pattern after
    `!` is for weights that are stored `(out, in)`. Patterns are needed only for weights whose orientation does not
    follow from the shape of their bias (`lyc_fx.binding.orientation`).

    `dtype` converts all floating-point tensors to another dtype. `rounding="stochastic"` rounds up or down at random,
    with the exact value as the mean; the draws depend on `seed`.

    Weights are read, merged and written in blocks by several threads, within `memory` bytes. The output is the same,
    to the byte, for any number of threads and any `memory`. `verify` reads the output back from the disk and compares
    it. `progress` is called as `progress(name, size)` after `size` more bytes, of which the tensor `name` is the last.

    The metadata of the base is kept, and `lyc_fx.fold` is added to it: a list with digests, strengths and versions of
    this fold and earlier ones.

    If a folder's config.json ties the head to the embedding, an adapter for one of them changes only that one, as in
    training: both tensors are then written, and the new configuration ties nothing. A weight under weight norm, stored
    as `weight_v` and `weight_g`, is computed from these as torch does, merged, and written as such a pair again.

    The output appears under its name only when it is complete. An existing file is replaced; an existing folder only
    with `force`, and only if lyc-fx wrote all weights in it. With `resume` (folders only), an interrupted fold keeps
    its finished shards, and the next call continues from there. Under torchrun the ranks share the shards.

    Returns a report of what was applied where, and how much of each change is left after rounding. Raises BadFile,
    BadAdapter, or Unsupported (such as for a packed dtype, or `dtype` for float8 weights in units of a scale); then
    there is no output, and an existing one is unchanged. Warns as `merge`.
    """
    target = None if out is None else path_of(out, "the output")
    if rounding not in get_args(Rounding):
        raise BadAdapter(f"there is no rounding {rounding!r}: use {' or '.join(map(repr, get_args(Rounding)))}")
    stack = stacked(adapters, strength, convention, sequential, allow_nonfinite=allow_nonfinite, component=component)
    patterns = tuple(transposed)
    if is_program(base):
        _refuse_for_programs(base, dtype, resume=resume)
        from lyc_fx.checkpoint.programs.fold_program import Ways, fold_program  # it needs torch.export

        compute_by = compute, seed if rounding == "stochastic" else None
        ways = Ways(patterns, strict, lossy, memory, verify, *compute_by, progress)
        return fold_program(path_of(base, "the base"), target, stack, Provenance.of(stack, convention), ways)
    source = open_base(base)
    tied = find_ties(source)
    weights = with_orientation(with_tied_names(source.weights(), tied), patterns)
    elsewhere = cache(partial(other_names, source))
    new_tensors = find_new_tensors(stack, source, weights, elsewhere)
    weights = with_new_shapes(new_tensors, weights)
    try:
        binding = bind(stack, weights, strict=strict, elsewhere=elsewhere)
    except NotApplicable as error:
        raise _explained(error, base, source, weights) from error
    if binding.report.refused and not binding.targets:
        raise BadAdapter(
            f"{base}: no adapter matches a weight of it, so the output would be a plain copy; "
            f"adapter keys without effect: {len(binding.report.refused)}"
        )
    refuse_ambiguous(weights, filter(binding.active, binding.targets), patterns)
    refuse_conversion(weights, dtype)
    refuse_double_targets(weights, binding.targets)
    untied = tuple(tie for tie in tied if tie.broken(binding))
    if untied and not source.folder:
        raise Unsupported(
            f"{base}: {untied[0].config} beside it says that {' and '.join(untied[0].names)} are one tensor, and the "
            f"adapters make them differ: fold the folder ({source.root.parent}), so that its config.json is updated too"
        )
    source = with_aliases(source, {alias: name for tie in untied for alias, name in tie.aliases.items()})
    merger = Merger(binding, source, weights, compute, seed if rounding == "stochastic" else None)
    provenance = Provenance.of(stack, convention)
    both = [name for tie in tied for name in tie.names if name in new_tensors]
    if both:
        raise Unsupported(
            f"{both[0]} has another number of rows in the adapter than in the base, where it is a tied weight: untie "
            "the base first (load it, give the head a weight of its own, and save it)"
        )
    whole = merge_new_tensors(new_tensors, binding, dtype)
    fold = Fold(source, merger, dtype, provenance, memory, verify, lossy, untied, new_tensors, whole)
    inputs = [base, *(part.adapters.source for part in stack.parts)]
    if target is None:
        for part in source.parts:
            fold.write(part, None, progress)
        fold.refuse_rounded_away()
    else:
        write_output(target, fold, inputs, resume=resume, force=force, progress=progress)
    merger.effects |= dict.fromkeys(new_tensors, Effect(changed=True, delta=1.0))  # there is no base to compare with
    for tie in (each for each in tied if each not in untied):  # the aliases have the effect of the stored tensor
        merger.effects |= {a: merger.effects[s] for a, s in tie.aliases.items() if s in merger.effects}
    folded = [note for part in source.parts for note in provenance.find_repeated(part.metadata)]
    notes = [
        *_notes(source),
        *describe_new_tensors(new_tensors),
        *(tie.note for tie in untied),
        *dict.fromkeys(folded),
        *merger.notes,
    ]
    report = binding.finished(merger.effects, notes)
    report.warn()
    return report


def _refuse_for_programs(base: Path_, dtype: torch.dtype | None, *, resume: bool) -> None:
    if dtype is not None:
        raise Unsupported(
            f"{base}: a program computes in the dtypes that it was exported in: export it in {dtype}, and fold into "
            "that"
        )
    if resume:
        raise BadFile(f"{base}: resume=True (command line: --resume) works only for folders")


_FACTORS = (".lora_up.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks")


def _explained(error: NotApplicable, base: Path_, source: Base, names: Mapping[str, Weight]) -> LycFxError:
    """Return a better error if the base is of a kind that no adapter can fit: quantized, or an adapter itself."""
    quantized = explain_quantized(base, source, names)
    if quantized is not None:
        return Unsupported(f"{quantized}.\n{error.faults}")
    plain = [name for name in names if name.endswith(".weight") and not name.endswith(_FACTORS)]
    if any(name.endswith(_FACTORS) for name in names) and all(".lora" in name for name in plain):
        return BadAdapter(f"{base}: is itself an adapter; give the model first: lyc-fx fold BASE ADAPTER -o OUT")
    return error


def _notes(base: Base) -> list[str]:
    return [f"{path} was not copied: it holds weights without the adapters" for path in base.left_out]
