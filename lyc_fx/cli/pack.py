"""`lyc-fx pack`: adapters as inputs of an exported program."""

from pathlib import Path
from typing import Annotated

import typer

from lyc_fx.cli.arguments import Alpha, Config, Wanted
from lyc_fx.cli.programs import refuse_existing
from lyc_fx.cli.progress import working


def command(
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER[@STRENGTH]...", help="Adapter files, or PEFT directories.")
    ],
    program: Annotated[
        Path, typer.Option("--for", metavar="PROGRAM", help="What lyc-fx export --kind slots has written.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="A .safetensors file; for an .onnx also .onnx_adapter.")
    ],
    strict: Annotated[
        bool, typer.Option("--strict/--no-strict", help="Whether a key that matches no weight is an error.")
    ] = True,
    config: Config = None,
    alpha: Alpha = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Make adapters of any format the inputs of an exported program; exact, or refused."""
    wanted = [Wanted.parse(text) for text in adapters]
    refuse_existing(out, [program, *(each.path for each in wanted)], force=force)
    with working("packing", quiet=quiet):
        from lyc_fx.artefacts.pack import pack
        from lyc_fx.formats import load

        sets = [(load(each.path, config=config, alpha=alpha), each.strength) for each in wanted]
        packed = pack(sets, program, out, strict=strict)
    if not quiet and packed.report is not None:
        for each in packed.report.unused:
            typer.echo(f"warning: {each} had no effect", err=True)
        typer.echo(f"{len(packed.report.applied)} adapters in {len(packed.tensors)} inputs; wrote {out}")
