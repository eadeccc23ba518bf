"""`lyc-fx coverage`: what adapter files would change in a model, and what not."""

import json
from pathlib import Path
from typing import Annotated

import typer

from lyc_fx.cli.arguments import Alpha, Config
from lyc_fx.cli.partial import end, read_in_part
from lyc_fx.cli.progress import working
from lyc_fx.cli.renaming import Rename, renamed


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .safetensors file, or a folder with some.")],
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter files, or PEFT directories.")],
    rename: Rename = None,
    config: Config = None,
    alpha: Alpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """For each key of adapter files: what it changes or why not; for each weight of a model: adapted or not."""
    with working("reading the headers", quiet=as_json):
        from lyc_fx.coverage import coverage

        read = [read_in_part(path, config, alpha) for path in adapters]
        found = coverage(renamed([file for file, _ in read], rename), model)
    typer.echo(json.dumps(found.to_dict(), indent=1) if as_json else str(found))
    end("\n".join(fault for _, fault in read if fault) or None, complete=found.complete)
