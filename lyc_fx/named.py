"""The names by which adapters mean a model's parameters, those of elsewhere included where they are needed."""

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from lyc_fx.adapters import Entry
from lyc_fx.naming import Names


def names_for(
    entries: Iterable[Entry],
    shapes: Mapping[str, tuple[int, ...]],
    aliases: Mapping[str, str] = MappingProxyType({}),
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> Names:
    """The names of the parameters of these shapes. Where an entry finds none, `elsewhere` is asked for more, which may
    take long: other names of a parameter, to the one that it has."""
    names = Names(shapes, aliases)
    if all(names.find(entry.module, entry.leaf) for entry in entries):
        return names
    more = elsewhere()
    return Names(shapes, {**more, **aliases}) if more else names
