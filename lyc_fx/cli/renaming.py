"""The option `--rename OLD=NEW`, which renames the modules of adapter files."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lyc_fx.adapters.adapter_set import AdapterSet

Rename = Annotated[
    list[str] | None,
    typer.Option(metavar="OLD=NEW", help="Replace these whole segments by NEW in the files' module names."),
]


def renamed(files: "Sequence[AdapterSet]", wanted: Sequence[str] | None) -> "list[AdapterSet]":
    """Rename the modules of all files. `wanted` are the texts OLD=NEW.

    Raises BadAdapter if an OLD occurs in none of the files, or if two names would become the same.
    """
    from lyc_fx.adapters.renaming import matches
    from lyc_fx.errors import BadAdapter

    table = dict(_pair(text) for text in wanted or ())
    modules = {old: [any(matches(old, e.module) for e in file.entries) for file in files] for old in table}
    for old, found in modules.items():
        if not any(found):
            example = next((entry.module for file in files for entry in file.entries), "none")
            raise BadAdapter(f"--rename: no module has {old!r} as whole segments of its name; the first is {example}")
    made = []
    for position, file in enumerate(files):
        own = {old: new for old, new in table.items() if modules[old][position]}
        made.append(file.renamed(own) if own else file)
    return made


def _pair(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text}: a renaming is OLD=NEW, such as model.diffusion_model=unet")
    return old, new
