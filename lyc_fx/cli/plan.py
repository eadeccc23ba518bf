"""`lyc-fx plan`: how each adapted layer of an exported program would run, and at what cost."""

from pathlib import Path
from typing import Annotated

import typer

from lyc_fx.cli.programs import read_program
from lyc_fx.cli.progress import working


def command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A .pt2 file, as torch.export or lyc-fx writes it.")],
    adapters: Annotated[list[Path], typer.Argument(metavar="ADAPTER...", help="Adapter files, or PEFT directories.")],
    sizes: Annotated[
        list[str] | None, typer.Option("--size", metavar="NAME=N", help="A dynamic size, such as x.shape[1]=256.")
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", help="MiB that merged weights may take. [default: no limit]", min=0)
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Also save the plan as JSON, for lyc_fx.Plan.load.")
    ] = None,
) -> None:
    """Print, for each adapted layer of a program, the form that costs least: a chain, or a merged weight.

    Costs are predicted from the operators and this machine's speed, over the layer without adapters.
    """
    given = dict(_size(text) for text in sizes or ())
    with working("reading the program", quiet=False):
        from lyc_fx.graph.capture import capture
        from lyc_fx.graph.planning import plan
        from lyc_fx.graph.verbs import splice

        adapted = splice(capture(read_program(model)), [str(path) for path in adapters])
    limit = None if memory is None else int(memory * 2**20)
    found = plan(adapted, sizes=given, memory=limit)
    typer.echo(str(found))
    if output is not None:
        found.save(output)


def _size(text: str) -> tuple[str, int]:
    name, equals, number = text.rpartition("=")
    if not equals or not number.isdecimal():
        raise typer.BadParameter(f"{text}: write NAME=N, such as x.shape[1]=256", param_hint="--size")
    return name, int(number)
