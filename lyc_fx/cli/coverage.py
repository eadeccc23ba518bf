"""`lyc-fx coverage`: which keys of adapter files would change which weights of a model."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lyc_fx.cli.arguments import Alpha, Config
from lyc_fx.cli.partial import exit_with, load_sound
from lyc_fx.cli.progress import working
from lyc_fx.cli.renaming import Rename, renamed


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or a folder of such files.")],
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter files, or PEFT directories.")],
    rename: Rename = None,
    config: Config = None,
    alpha: Alpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show what each key of adapter files would change in a model, or why not, and which weights are adapted."""
    with working("reading the headers", quiet=as_json):
        from lyc_fx.inspection.coverage import coverage

        read = [load_sound(path, config, alpha) for path in adapters]
        found = coverage(renamed([file for file, _ in read], rename), model)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))
    exit_with("\n".join(fault for _, fault in read if fault) or None, complete=found.complete)
