"""`lyc-fx fold`: folding adapters into a checkpoint."""

import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal

from lyc_fx.checkpoint.ahead import read_ahead
from lyc_fx.choices import Convention, Rounding
from lyc_fx.cli.allocator import retain_freed_memory
from lyc_fx.cli.arguments import Alpha, Config, DType, Wanted, parse_block
from lyc_fx.cli.progress import counting_bytes, working
from lyc_fx.cli.renaming import Rename, renamed

if TYPE_CHECKING:
    from lyc_fx.adapters.adapter_set import AdapterSet
    from lyc_fx.binding.report import Report

_NAMED = 5
"""How many unused keys a warning names; --json lists all"""


def command(
    base: Annotated[
        Path,
        typer.Argument(
            metavar="BASE",
            help="The checkpoint: a .safetensors file, the folder of a model, or a program, .pt2 or .onnx.",
        ),
    ],
    adapters: Annotated[
        list[str],
        typer.Argument(
            metavar="ADAPTER[@STRENGTH]...", help="Adapter files; a.safetensors@0.5 applies it at half strength."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", metavar="OUT", help="The merged checkpoint: a file, or a new folder if BASE is a folder."
        ),
    ] = None,
    strength: Annotated[float, typer.Option(metavar="FACTOR", help="Multiplies the strength of every adapter.")] = 1.0,
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Whether a key that matches no weight is an error.")
    ] = True,
    only: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Apply only modules whose name in the file matches.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Leave out modules whose name in the file matches.")
    ] = None,
    block: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=FACTOR", help="Strength factor of weights whose name in BASE matches; the first counts."
        ),
    ] = None,
    rename: Rename = None,
    config: Config = None,
    alpha: Alpha = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Apply each adapter to the result of those before it, not to the base.")
    ] = False,
    convention: Annotated[
        Convention, typer.Option(help="What strengths between 0 and 1 mean for DoRA and rescaled OFT.")
    ] = "interpolate",
    transposed: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN", help="Weights stored as (in, out), as in GPT-2's Conv1D; !PATTERN: as (out, in)."
        ),
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Which of several components with the same parameter names, such as transformer_2."
        ),
    ] = None,
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Accept weights of BASE that hold NaN or infinity.")
    ] = False,
    lossy: Annotated[
        bool, typer.Option("--lossy", help="Fold even if rounding leaves less than half of what the adapters change.")
    ] = False,
    dtype: Annotated[
        DType | None, typer.Option(help="Convert all floating-point weights; by default each keeps its dtype.")
    ] = None,
    rounding: Annotated[Rounding, typer.Option(help="To the nearest value, or up or down at random.")] = "nearest",
    seed: Annotated[int, typer.Option(help="The seed of --rounding stochastic.")] = 0,
    memory: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Limit for blocks being merged and waiting results, in MiB.")
    ] = 512,
    verify: Annotated[bool, typer.Option("--verify", help="Read the output back from the disk, and compare.")] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="For a folder: if interrupted, keep finished shards, and continue from them."),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Do everything except writing, with the same checks and errors; needs no OUT."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print no report, progress or notes.")] = False,
) -> None:
    """Fold adapters into a checkpoint: merge the weights, and keep all keys, shapes and dtypes."""
    wanted = [Wanted.parse(text) for text in adapters]
    blocks = dict(parse_block(text) for text in block or [])
    quiet = quiet or int(os.environ.get("RANK", "0")) > 0  # under torchrun only the first rank prints
    started = perf_counter()
    if out is None and not dry_run:
        raise typer.BadParameter("give the output with --out/-o; only --dry-run needs none")
    with working("loading the adapters", quiet=quiet):
        read_ahead(base)  # while torch is imported, which takes a second
        retain_freed_memory()
        import torch

        from lyc_fx import fold_checkpoint, load
        from lyc_fx.binding.report import NothingChanged, RoundedAway
        from lyc_fx.checkpoint.base import is_folder, is_program
        from lyc_fx.storage.may_overwrite import free

        given = [(load(each.path, config=config, alpha=alpha), each.strength) for each in wanted]
        stack = _chosen(given, only or [], exclude or [])
        stack = list(zip(renamed([file for file, _ in stack], rename), (factor for _, factor in stack), strict=True))
        if out is not None:
            inputs = [base, *(each.path for each in wanted)]
            suffix = base.suffix if is_program(base) else ".safetensors"
            free(out, inputs, folder=is_folder(base), force=force, suffix=suffix)
    size = _bytes(base)
    with counting_bytes("folding", size, quiet=quiet) as progress, warnings.catch_warnings():
        for said in (NothingChanged, RoundedAway):  # printed below
            warnings.simplefilter("ignore", said)
        report = fold_checkpoint(
            base,
            [(file, value * strength) for file, value in stack],
            None if dry_run else out,
            blocks or 1.0,
            strict=strict,
            convention=convention,
            sequential=sequential,
            transposed=transposed or (),
            allow_nonfinite=allow_nonfinite,
            lossy=lossy,
            component=component,
            dtype=None if dtype is None else getattr(torch, dtype),
            rounding=rounding,
            seed=seed,
            memory=memory * 2**20,
            verify=verify,
            resume=resume,
            force=force,
            progress=progress,
        )
    seconds = perf_counter() - started
    written = None if dry_run or out is None else _bytes(out)
    if as_json and not int(os.environ.get("RANK", "0")):
        facts = {"output": None if written is None else str(out), "bytes": written, "seconds": round(seconds, 3)}
        typer.echo(json.dumps(facts | report.to_dict(), indent=1))
    elif not quiet:
        typer.echo(report if dry_run else _summary(report))
        if not dry_run and report.kept_line is not None:
            typer.echo(report.kept_line)
        typer.echo("nothing was written" if dry_run else f"wrote {out} ({decimal(written or 0)}) in {seconds:.1f} s")
    warned = report.nothing_changed or report.rounded_away
    if warned is not None:
        typer.echo(f"warning: {warned}", err=True)  # also with --quiet
    if not quiet:
        _warn(report)


def _bytes(path: Path) -> int | None:
    """Return the size of a file, or of the weights in a folder; None if it does not exist."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*.safetensors"))
    return path.stat().st_size if path.is_file() else None


def _chosen(
    given: "Sequence[tuple[AdapterSet, float]]", only: Sequence[str], exclude: Sequence[str]
) -> list[tuple["AdapterSet", float]]:
    """Return the modules of each file that --only and --exclude leave.

    Raises BadAdapter for a pattern that no module matches, which is probably misspelt, and if no module is left.
    """
    from lyc_fx.errors import BadAdapter

    files = [file for file, _ in given]
    for pattern in (*only, *exclude):
        if not any(len(file.select(pattern)) or file.select(pattern).unread for file in files):
            example = next((entry.module for file in files for entry in file.entries), "")
            raise BadAdapter(f"no module matches {pattern!r}; the first is {example}")
    chosen = [file.select(*only) if only else file for file in files]
    chosen = [file.exclude(*exclude) if exclude else file for file in chosen]
    if not any(map(len, chosen)):
        raise BadAdapter("--only and --exclude leave no adapter")
    return [(file, strength) for file, (_, strength) in zip(chosen, given, strict=True)]


def _summary(report: "Report") -> str:
    """Return a line such as `40 adapters on 37 weights: 37 loha, 3 locon`."""
    count = Counter(row.algorithm for row in report.applied)
    weights = len({row.target for row in report.applied})
    kinds = ", ".join(f"{number} {name}" for name, number in count.most_common())
    return f"{_several(len(report.applied), 'adapter')} on {_several(weights, 'weight')}" + (
        f": {kinds}" if kinds else ""
    )


def _several(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _warn(report: "Report") -> None:
    if report.unused:
        named = ", ".join(report.unused[:_NAMED])
        more = f" and {len(report.unused) - _NAMED} more" if len(report.unused) > _NAMED else ""
        typer.echo(f"warning: {_several(len(report.unused), 'key')} had no effect: {named}{more}", err=True)
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
