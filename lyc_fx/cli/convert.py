"""`lyc-fx convert`: an adapter file in another convention."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lyc_fx.cli.arguments import Alpha, Config
from lyc_fx.cli.progress import working
from lyc_fx.cli.renaming import Rename, renamed
from lyc_fx.naming import Target

if TYPE_CHECKING:
    from lyc_fx.conversion import ConvertedAdapter


def command(
    file: Annotated[Path, typer.Argument(metavar="IN", help="An adapter: a .safetensors file or a PEFT directory.")],
    to: Annotated[Target, typer.Option(help="The convention to write.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="A file; for peft a new directory.")],
    like: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="The model it is for: a .safetensors file, or a folder with some."),
    ] = None,
    svd: Annotated[
        int | None,
        typer.Option(metavar="RANK", min=1, help="Approximate what has no exact form of this rank; prints the error."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT where it exists.")] = False,
    rename: Rename = None,
    config: Config = None,
    alpha: Alpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")] = False,
) -> None:
    """Write an adapter in another convention; exact, unless --svd is given."""
    with working("converting", quiet=quiet or as_json):
        from lyc_fx import load
        from lyc_fx.conversion import convert
        from lyc_fx.storage.may_overwrite import free

        [adapters] = renamed([load(file, config=config, alpha=alpha)], rename)
        conversion = convert(adapters, to.value, like=like, svd=svd)
        free(out, [file], folder=to is Target.peft, force=force)
        conversion.save(out, [file], force=force)
    if as_json:
        modules = [_data(made) for made in conversion.modules]
        typer.echo(json.dumps({"output": str(out), "convention": to.value, "modules": modules}, indent=1))
    elif not quiet:
        for line in _summary(conversion.modules):
            typer.echo(line)
        typer.echo(f"wrote {out}")


def _data(made: "ConvertedAdapter") -> dict[str, Any]:
    return {
        "module": made.module,
        "parameter": made.leaf,
        "sources": list(made.sources),
        "algorithm": made.adapter.name,
        "variant": made.adapter.variant,
        "rank": made.adapter.rank,
        "how": list(made.how),
        "error": made.error,
    }


def _summary(modules: "tuple[ConvertedAdapter, ...]") -> list[str]:
    """`40 modules: 30 as they were, 10 low rank`, and each error of an approximation."""
    count = Counter(" and ".join(made.how) or "as they were" for made in modules)
    lines = [f"{len(modules)} modules: " + ", ".join(f"{number} {how}" for how, number in count.most_common())]
    approximated = [made for made in modules if made.error is not None]
    if approximated:
        worst = max(approximated, key=lambda made: made.error or 0.0)
        lines += [
            f"  {made.module}: rank {made.adapter.rank}, relative error {made.error:.2e}" for made in approximated
        ]
        lines.append(f"largest relative error of a change: {worst.error:.2e} ({worst.module})")
    return lines
