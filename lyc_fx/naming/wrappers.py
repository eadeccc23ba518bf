"""Removing the segments that wrappers add to names: torch.compile, DataParallel and DDP, FSDP, checkpointing, PEFT.

They occur in models, checkpoints and adapter files, and have no meaning.
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
"""The segments of torch.compile, checkpoint_wrapper, FSDP, Lightning Fabric, and PEFT"""
_FIRST = "module."
"""The prefix of DataParallel, DDP and AveragedModel; it may also be a module's own name"""
_SEGMENTS = (*_SURE, _FIRST[:-1])


def _pattern(names: Iterable[str], separator: str) -> re.Pattern[str]:
    inner = "|".join(re.escape(name.replace(".", separator)) for name in names)
    mark = re.escape(separator)
    return re.compile(rf"^(?:{inner})(?:{mark}|$)|{mark}(?:{inner})(?={mark}|$)")


_DOTTED, _DOTTED_SURE, _FLAT = _pattern(_SEGMENTS, "."), _pattern(_SURE, "."), _pattern(_SEGMENTS, "_")


def unwrapped(name: str) -> str:
    """Remove such segments from a name: `module.blocks._orig_mod.fc.weight` → `blocks.fc.weight`; also a flat name.

    A segment such as `module` may be the model's own, so the caller must look up the whole name first.
    """
    return _without(_DOTTED if "." in name else _FLAT, name)


def _without(pattern: re.Pattern[str], name: str) -> str:
    while (shorter := pattern.sub("", name)) != name:  # removing one segment may bring another to the start
        name = shorter
    return name


def without_wrappers(shapes: Mapping[str, Value]) -> dict[str, Value]:
    """Return a model's parameters with names without wrappers, if the removed segments cannot be names of its own."""
    first = _FIRST if all(name.startswith(_FIRST) for name in shapes) else ""
    short = {name: _without(_DOTTED_SURE, name.removeprefix(first)) for name in shapes}
    counts = Counter(short.values())
    return {short[name] if counts[short[name]] == 1 else name: value for name, value in shapes.items()}


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Return a mapping from names without wrappers to those with them, leaving out ambiguous and existing names."""
    every = list(names)
    plain = {name: short for name in every if (short := unwrapped(name)) != name}
    counts = Counter(plain.values())
    taken = set(every)
    return {short: name for name, short in plain.items() if counts[short] == 1 and short not in taken}
