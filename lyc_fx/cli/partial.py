"""Showing what is sound in a broken file, and ending as it deserves."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lyc_fx.adapters import AdapterSet


def read_in_part(path: Path, config: Path | None, alpha: float | None) -> tuple["AdapterSet", str | None]:
    """The adapters of a file that can be used, and what is wrong with the others. Raises as `load` where none can."""
    from lyc_fx import load
    from lyc_fx.adapters import AdapterSet
    from lyc_fx.errors import BadModules

    try:
        return load(path, config=config, alpha=alpha), None
    except BadModules as error:
        sound = error.sound
        if not isinstance(sound, AdapterSet) or not len(sound):
            raise
        return sound, str(error)


def end(broken: str | None, *, complete: bool) -> None:
    """Exit with 1 where modules are broken, which is said, or where keys have no effect."""
    if broken is not None:
        typer.echo(f"error: {broken}", err=True)
    if broken is not None or not complete:
        raise typer.Exit(1)
