"""LyCORIS and kohya files: `<prefix>_<module path with _>.<suffix>`, or dotted module paths before the suffix.

`alpha` is a tensor of one element per module. Which family a module has, its rank and its layout come from the
suffixes and the shapes alone; nothing in the header is needed.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.errors import BadAdapter
from lyc_fx.families import FAMILIES, Adapter
from lyc_fx.formats.format import Format

_FAMILY_OF = {suffix: family for family in FAMILIES for suffix in family.suffixes.values()}
_SUFFIXES = sorted([*_FAMILY_OF, "alpha"], key=len, reverse=True)


@final
class Lycoris(Format):
    """Keys as LyCORIS 4.1 and sd-scripts write them."""

    name = "lycoris"

    def recognises(self, key: str) -> bool:
        return _split(key) is not None

    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> AdapterSet:
        modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
        unread = []
        for key, tensor in tensors.items():
            parts = _split(key)
            if parts is None:
                unread.append(key)
            else:
                modules[parts[0]][parts[1]] = tensor
        entries, faults = [], []
        for module, group in modules.items():
            try:
                entries.append(_entry(module, group))
            except BadAdapter as error:
                faults.append(f"  {module}: {error}")
        if faults:
            raise BadAdapter("\n".join([f"{source}: {len(faults)} modules cannot be used:", *faults]))
        return AdapterSet(tuple(entries), source, dict(metadata), tuple(unread))

    def write(self, adapters: AdapterSet) -> dict[str, Tensor]:
        tensors = {}
        for entry in adapters.entries:
            adapter = entry.adapter
            for field, factor in adapter.factors().items():
                tensors[f"{entry.module}.{adapter.suffixes[field]}"] = factor
            if adapter.alpha is not None:
                tensors[f"{entry.module}.alpha"] = torch.tensor(adapter.alpha, dtype=torch.float32)
        return tensors


def _split(key: str) -> tuple[str, str] | None:
    """`a.b.lora_up.weight` → (`a.b`, `lora_up.weight`)."""
    for suffix in _SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key[: -len(suffix) - 1], suffix
    return None


def _entry(module: str, group: Mapping[str, Tensor]) -> Entry:
    families = {_FAMILY_OF[suffix] for suffix in group if suffix != "alpha"}
    if not families:
        raise BadAdapter("there is an alpha, but no factor")
    if len(families) > 1:
        raise BadAdapter(f"factors of several algorithms: {', '.join(sorted(group))}")
    family = families.pop()
    adapter = family.read(group, _alpha(group.get("alpha")))
    adapter.check()
    _warn_of_zero(module, adapter)
    return Entry(module, "weight", adapter, tuple(f"{module}.{suffix}" for suffix in group))


def _alpha(tensor: Tensor | None) -> float | None:
    if tensor is None:
        return None
    if tensor.numel() != 1:
        raise BadAdapter(f"alpha has {tensor.numel()} values, not one")
    return float(tensor)


def _warn_of_zero(module: str, adapter: Adapter) -> None:
    if adapter.uses_alpha and adapter.alpha == 0:
        warnings.warn(f"{module}: alpha is 0, read as LyCORIS reads it: scale 1", stacklevel=2)
