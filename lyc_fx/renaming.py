"""Renaming modules by whole segments of their names."""

from collections import defaultdict
from collections.abc import Iterable, Mapping

from lyc_fx.errors import BadAdapter, WrongArgument

_SHOWN = 3


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A name in which each run of segments that is a key of the table has become its value.

    Segments end at dots; in a name without dots, such as `lora_unet_mid_block`, at underscores, which stand for the
    dots of the table as well. The longest key counts, and what was renamed is not renamed again. The empty key stands
    before every name: its value is put there as it is.
    """
    mark = "." if "." in name else "_"
    keys = sorted(((_segments(old, mark), _segments(new, mark)) for old, new in table.items() if old), key=_longest)
    parts, made = name.split(mark), list[str]()
    while parts:
        old, new = next(((o, n) for o, n in keys if parts[: len(o)] == o), (parts[:1], parts[:1]))
        made, parts = made + new, parts[len(old) :]
    return table.get("", "") + mark.join(made)


def names_of(names: Iterable[str], table: Mapping[str, str], source: str) -> dict[str, str]:
    """The new name of each. Raises BadAdapter where a key matches no name, or where two names become one."""
    every = list(dict.fromkeys(names))
    _refuse_idle(every, table, source)
    made: dict[str, list[str]] = defaultdict(list)
    for name in every:
        made[renamed(name, table)].append(name)
    for new, olds in made.items():
        if len(olds) > 1 or not new:
            raise BadAdapter(f"{source}: renaming makes {new or 'nothing'} of {' and '.join(olds[:_SHOWN])}")
    return {old: new for new, [old] in made.items()}


def matches(old: str, name: str) -> bool:
    """Whether a key of a table is in a name."""
    return not old or renamed(name, {old: ""}) != name


def table_of(given: object) -> dict[str, str]:
    """A table as it was given. Raises WrongArgument for what is none, and for a key that is nothing but a separator."""
    if not isinstance(given, Mapping) or not given or not all(isinstance(t, str) for p in given.items() for t in p):
        raise WrongArgument('names are renamed by a mapping of texts, such as {"model.diffusion_model": "unet"}')
    for old in given:
        if old and not old.strip("._"):
            raise WrongArgument(f"{old!r} is no segment of a name")
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
