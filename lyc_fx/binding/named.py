"""The names that adapters may use for a model's parameters, including further names if they are needed."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.naming import Names


def names_for(
    entries: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str] = MappingProxyType({}),
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> Names:
    """Return all names that adapter files may use for the parameters of these shapes.

    `aliases` maps further names to those of parameters. `elsewhere` returns more of these; since that may take long, it
    is called only if an entry matches none of the other names.
    """
    names = Names(shapes, aliases)
    if all(names.find(entry.module, entry.leaf) for entry in entries):
        return names
    more = elsewhere()
    return Names(shapes, {**more, **aliases}) if more else names
