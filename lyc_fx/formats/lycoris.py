"""LyCORIS and kohya files: `<prefix>_<module path with _>.<suffix>`, or dotted module paths before the suffix.

`alpha` is a tensor of one element per module. Which family a module has, its rank and its layout come from the
suffixes and the shapes alone; nothing in the header is needed.
"""

from typing import final

from lyc_fx.adapters import AdapterSet
from lyc_fx.formats.entries import SUFFIXES
from lyc_fx.formats.format import Contents, Format, Source

_PLAIN = "weight"
"""A suffix of IA3, and of every checkpoint: it counts only beside `on_input`."""
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)


@final
class Lycoris(Format):
    """Keys as LyCORIS 4.1 and sd-scripts write them."""

    name = "lycoris"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        for suffix in _LONGEST_FIRST:
            if key.endswith(f".{suffix}"):
                module = key[: -len(suffix) - 1]
                return (module, suffix) if suffix != _PLAIN or f"{module}.on_input" in source.keys else None
        return None

    def write(self, adapters: AdapterSet) -> Contents:
        tensors = {
            f"{entry.module}.{suffix}": tensor
            for entry in adapters.entries
            for suffix, tensor in entry.adapter.written(entry.leaf).items()
        }
        return Contents(tensors, adapters.metadata)
