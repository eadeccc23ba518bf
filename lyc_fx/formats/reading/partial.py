"""Modules of which some keys were not understood: without a magnitude, say, a DoRA would be taken for a LoRA."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import takewhile


def not_understood(modules: Mapping[str, Sequence[str]], unread: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The keys that no format reads, by the module that they stand beside: that of the longest common beginning."""
    found: dict[str, list[str]] = defaultdict(list)
    stems = {module: _stem(keys) for module, keys in modules.items()} if unread else {}
    for key in unread:
        owners = [module for module, stem in stems.items() if stem and key.startswith(stem)]
        if owners:
            found[max(owners, key=lambda module: len(stems[module]))].append(key)
    return {module: tuple(keys) for module, keys in found.items()}


def _stem(keys: Sequence[str]) -> str:
    """What a module's keys begin with: `unet.fc.` of `unet.fc.lora_A.weight` and `unet.fc.lora_B.weight`."""
    columns = zip(*(key.split(".")[:-1] for key in keys), strict=False)
    parts = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, columns)]
    while len(parts) > 1 and parts[-1].startswith("lora"):
        parts.pop()
    return ".".join(parts) + "." if parts else ""
