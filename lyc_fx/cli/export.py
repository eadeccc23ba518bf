"""`lyc-fx export`: a program with adapters as a file that runs without lyc-fx and without the model's code."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from lyc_fx.cli.arguments import Wanted
from lyc_fx.cli.programs import read_program, refuse_existing
from lyc_fx.cli.progress import working

if TYPE_CHECKING:
    from torch.fx import GraphModule

Kind = Literal["folded", "slots", "styles"]


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .pt2 file, as torch.export or lyc-fx writes it.")],
    adapters: Annotated[
        list[str], typer.Argument(metavar="ADAPTER[@STRENGTH]...", help="Adapter files, or PEFT directories.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", metavar="OUT", help="A .pt2, .onnx or .aoti.pt2 (compiled) file; or .safetensors."),
    ],
    kind: Annotated[
        Kind,
        typer.Option(
            help="folded: merged weights; slots: the adapter is an input; styles: each sample's strengths are an input."
        ),
    ] = "folded",
    rank: Annotated[
        int | None,
        typer.Option(min=1, help="With slots: the rank that adapters may have where it is fixed. [default: ADAPTER's]"),
    ] = None,
    check: Annotated[bool, typer.Option("--check/--no-check", help="Run the file in a fresh process first.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write a program with adapters: to run anywhere, and to take other adapters or strengths later."""
    wanted = [Wanted.parse(text) for text in adapters]
    refuse_existing(out, [model, *(each.path for each in wanted)], force=force)
    if rank is not None and kind != "slots":
        raise typer.BadParameter("only --kind slots leaves room for other adapters", param_hint="--rank")
    with working("exporting", quiet=quiet):
        from lyc_fx.exporting.export import export

        export(_made(model, wanted, kind, rank), out, check=check)
    if not quiet:
        typer.echo(f"wrote {out} ({kind})")


def _made(model: Path, wanted: list[Wanted], kind: Kind, rank: int | None) -> "GraphModule":
    from lyc_fx.exporting.kinds import slots, styles
    from lyc_fx.formats import load
    from lyc_fx.graph.capture import capture
    from lyc_fx.graph.verbs import fold, splice

    sets = [(load(each.path), each.strength) for each in wanted]
    program = capture(read_program(model))
    if kind == "slots":
        own = max((entry.adapter.rank or 1 for adapters, _ in sets for entry in adapters.entries), default=1)
        return slots(splice(program, sets, rank=rank or own))
    if kind == "styles":
        return styles(splice(program, sets))
    return fold(splice(program, sets))
