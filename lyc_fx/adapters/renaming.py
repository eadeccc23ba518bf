"""Renaming modules by whole segments of their names."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from lyc_fx.errors import BadAdapter, WrongArgument

_SHOWN = 3


def rename(name: str, table: Mapping[str, str]) -> str:
    """Replace, in a name, each key of the table by its value. A key is one or more whole segments of the name.

    Segments are separated by dots; in a name without dots, such as `lora_unet_mid_block`, by underscores, and the dots
    of the table then stand for underscores. The longest key counts, and a replacement is not renamed again. The value
    of the empty key is put before every name as it is.
    """
    mark = "." if "." in name else "_"
    keys = sorted(((_segments(old, mark), _segments(new, mark)) for old, new in table.items() if old), key=_longest)
    parts, made = name.split(mark), list[str]()
    while parts:
        old, new = next(((o, n) for o, n in keys if parts[: len(o)] == o), (parts[:1], parts[:1]))
        made, parts = made + new, parts[len(old) :]
    return table.get("", "") + mark.join(made)


def rename_all(names: Iterable[str], table: Mapping[str, str], source: str) -> dict[str, str]:
    """Rename all modules of the file `source`. Returns a mapping from old to new names.

    Raises BadAdapter if a key matches no name, or if two names would become the same.
    """
    every = list(dict.fromkeys(names))
    _refuse_idle(every, table, source)
    made: dict[str, list[str]] = defaultdict(list)
    for name in every:
        made[rename(name, table)].append(name)
    for new, olds in made.items():
        if len(olds) > 1 or not new:
            raise BadAdapter(f"{source}: renaming turns {' and '.join(olds[:_SHOWN])} into {new or 'an empty name'}")
    return {old: new for new, [old] in made.items()}


def matches(old: str, name: str) -> bool:
    """Return whether a key of a table occurs in a name."""
    return not old or rename(name, {old: ""}) != name


def check_table(given: object) -> dict[str, str]:
    """Check a table given by the user, and return it as a dict.

    Raises WrongArgument for anything but a mapping of texts, and for a key that consists of separators.
    """
    if not isinstance(given, Mapping) or not given or not all(isinstance(t, str) for p in given.items() for t in p):
        raise WrongArgument('a renaming is a mapping of texts, such as {"model.diffusion_model": "unet"}')
    for old in given:
        if old and not old.strip("._"):
            raise WrongArgument(f"{old!r} is not a segment of a name")
    return dict(given)


def _refuse_idle(names: list[str], table: Mapping[str, str], source: str) -> None:
    for old in table:
        if not any(matches(old, name) for name in names):
            shown = ", ".join(names[:_SHOWN]) or "none"
            raise BadAdapter(f"{source}: no module has {old!r} as whole segments of its name; the first are {shown}")


def _segments(text: str, mark: str) -> list[str]:
    inner = text.replace(".", mark).strip(mark)
    return inner.split(mark) if inner else []


def _longest(pair: tuple[list[str], list[str]]) -> int:
    return -len(pair[0])
