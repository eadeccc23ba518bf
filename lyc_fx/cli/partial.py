"""Reading the sound part of a broken adapter file, and exiting with the right code."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from lyc_fx.adapters.adapter_set import AdapterSet


def load_sound(path: Path, config: Path | None, alpha: float | None) -> tuple["AdapterSet", str | None]:
    """Load the adapters of a file that can be used. Returns them, and the error for the others, or None.

    Raises as `load` if no adapter can be used.
    """
    from lyc_fx import load
    from lyc_fx.adapters.adapter_set import AdapterSet
    from lyc_fx.errors import BadModules

    try:
        return load(path, config=config, alpha=alpha), None
    except BadModules as error:
        sound = error.sound
        if not isinstance(sound, AdapterSet) or not len(sound):
            raise
        return sound, str(error)


def exit_with(broken: str | None, *, complete: bool) -> None:
    """Print the error for broken modules, if any. Exit with 1 if there is one, or if not `complete`."""
    if broken is not None:
        typer.echo(f"error: {broken}", err=True)
    if broken is not None or not complete:
        raise typer.Exit(1)
