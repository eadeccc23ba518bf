"""Segments that wrappers put into names: torch.compile, DataParallel and DDP, FSDP, activation checkpointing, PEFT.

They stand in models, in checkpoints and in adapter files, and mean nothing.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TypeVar

Value = TypeVar("Value")
_SURE = (
    "_orig_mod",
    "_checkpoint_wrapped_module",
    "_fsdp_wrapped_module",
    "_forward_module",
    "base_layer",
    "base_model.model",
)
"""Of torch.compile, checkpoint_wrapper, FSDP, Lightning Fabric, and PEFT"""
_FIRST = "module."
"""Of DataParallel, DDP and AveragedModel; it may also be a module's own name"""
_SEGMENTS = (*_SURE, _FIRST[:-1])


def _pattern(names: Iterable[str], separator: str) -> re.Pattern[str]:
    inner = "|".join(re.escape(name.replace(".", separator)) for name in names)
    mark = re.escape(separator)
    return re.compile(rf"^(?:{inner})(?:{mark}|$)|{mark}(?:{inner})(?={mark}|$)")


_DOTTED, _DOTTED_SURE, _FLAT = _pattern(_SEGMENTS, "."), _pattern(_SURE, "."), _pattern(_SEGMENTS, "_")


def unwrapped(name: str) -> str:
    """A name without such segments: `module.blocks._orig_mod.fc.weight` → `blocks.fc.weight`; a flat one likewise.

    A segment such as `module` may be the model's own: that a name has one, and not another, must be asked first.
    """
    return _without(_DOTTED if "." in name else _FLAT, name)


def _without(pattern: re.Pattern[str], name: str) -> str:
    while (shorter := pattern.sub("", name)) != name:  # what one at the start leaves may start with another
        name = shorter
    return name


def without_wrappers(shapes: Mapping[str, Value]) -> dict[str, Value]:
    """A model's parameters under the names that they have without wrappers, where these are surely none of its own."""
    first = _FIRST if all(name.startswith(_FIRST) for name in shapes) else ""
    short = {name: _without(_DOTTED_SURE, name.removeprefix(first)) for name in shapes}
    counts = Counter(short.values())
    return {short[name] if counts[short[name]] == 1 else name: value for name, value in shapes.items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers, to those with them; not where two become one, or one that is there already."""
    every = list(names)
    plain = {name: short for name in every if (short := unwrapped(name)) != name}
    counts = Counter(plain.values())
    taken = set(every)
    return {short: name for name, short in plain.items() if counts[short] == 1 and short not in taken}
