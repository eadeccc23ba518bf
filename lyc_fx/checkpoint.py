"""The checkpoint road: adapters folded into safetensors files, without any model code."""

import os
from collections.abc import Collection, Iterable, Sequence
from functools import cache, partial
from typing import Literal

import torch

from lyc_fx.binding import bind
from lyc_fx.errors import BadAdapter, LycFxError, NotApplicable, Unsupported
from lyc_fx.families import Convention, Effect
from lyc_fx.files import path_of
from lyc_fx.folding.base import Base, based
from lyc_fx.folding.classes import other_names
from lyc_fx.folding.fold import Fold
from lyc_fx.folding.given import as_weights, given_by, written
from lyc_fx.folding.given import notes as given_notes
from lyc_fx.folding.merger import Merger
from lyc_fx.folding.normed import refuse_both
from lyc_fx.folding.output import written_to
from lyc_fx.folding.provenance import Provenance
from lyc_fx.folding.quantized import advice
from lyc_fx.folding.run import Progress
from lyc_fx.folding.scaled import refuse_conversion
from lyc_fx.folding.ties import known_by, ties, with_aliases
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
    force: bool = False,
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
    in training: both are written then, and the new configuration ties nothing. A weight under weight norm, which is
    stored as `weight_v` and `weight_g`, is computed from these as torch does, and written as such a pair again.

    The output appears under its name only when it is whole. A file of that name is replaced, as torch.save does; a
    folder only with `force`, and only where lyc-fx wrote all weights in it. `resume` (for folders) keeps the shards
    that were done when it is interrupted, and goes on from there. Under torchrun each rank takes its share of them.

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
    elsewhere = cache(partial(other_names, source))
    given = given_by(stack, source, weights, elsewhere)
    weights = as_weights(given, weights)
    try:
        binding = bind(stack, weights, strict=strict, elsewhere=elsewhere)
    except NotApplicable as error:
        raise _explained(error, base, weights) from error
    if binding.report.refused and not binding.targets:
        raise BadAdapter(
            f"no adapter found a weight of {base}: there is nothing to fold, and the output would be a copy; "
            f"keys without effect: {len(binding.report.refused)}"
        )
    refuse_doubtful(weights, filter(binding.active, binding.targets), patterns)
    refuse_conversion(weights, dtype)
    refuse_both(weights, binding.targets)
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


_FACTORS = (".lora_up.weight", ".lora_B.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a", ".oft_blocks")


def _explained(error: NotApplicable, base: Path_, names: Collection[str]) -> LycFxError:
    """The error, after what the base is that adapters cannot fit."""
    quantized = advice(base, names)
    if quantized is not None:
        return Unsupported(f"{quantized}.\n{error.faults}")
    plain = [name for name in names if name.endswith(".weight") and not name.endswith(_FACTORS)]
    if any(name.endswith(_FACTORS) for name in names) and all(".lora" in name for name in plain):
        return BadAdapter(f"{base}: is an adapter itself; the model comes first: lyc-fx fold BASE ADAPTER -o OUT")
    return error


def _notes(base: Base) -> list[str]:
    return [f"{path} was left out: it holds weights without the adapters" for path in base.left]
