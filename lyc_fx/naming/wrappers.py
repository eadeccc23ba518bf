"""Segments that wrappers put into names: torch.compile, DataParallel and DDP, FSDP, activation checkpointing.

They stand in models, in checkpoints and in adapter files, and mean nothing.
"""

from collections import Counter
from collections.abc import Iterable

_ANYWHERE = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_FIRST = "module"
"""A segment of DataParallel, DDP and AveragedModel; further inside it may be a module's own name"""


def unwrapped(name: str) -> str:
    """A name without such segments: `module._orig_mod.fc.weight` → `fc.weight`; a flattened one likewise."""
    if "." not in name:
        return name.replace("__orig_mod_", "_")
    parts = [part for part in name.split(".") if part not in _ANYWHERE]
    while len(parts) > 1 and parts[0] == _FIRST:
        parts.pop(0)
    return ".".join(parts)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers, to those with them; not where two become one, or one that is there already."""
    every = list(names)
    plain = {name: short for name in every if (short := unwrapped(name)) != name}
    counts = Counter(plain.values())
    taken = set(every)
    return {short: name for name, short in plain.items() if counts[short] == 1 and short not in taken}
