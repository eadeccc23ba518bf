"""LyCORIS and kohya files: `<prefix>_<module path with _>.<suffix>`, or dotted module paths before the suffix.

The suffixes are those that the algorithms declare (`lyc_fx/algorithms/`). `alpha` is a tensor of one element per
module. Which family a module has, its rank and its layout come from the suffixes and the shapes alone; nothing in the
header is needed.
"""

from collections.abc import Iterator, Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.algorithms.full import Full
from lyc_fx.errors import Unsupported
from lyc_fx.formats.format import Contents, Format, Source
from lyc_fx.formats.reading.stated import stated_scale
from lyc_fx.formats.reading.suffixes import suffixes

_PLAIN = "weight"
"""A suffix of IA3, and of every checkpoint: it counts only beside `on_input`."""


@final
class Lycoris(Format):
    """Keys as LyCORIS 4.1 and sd-scripts write them."""

    name = "lycoris"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        for suffix in suffixes().longest_first:
            if key.endswith(f".{suffix}"):
                module = key[: -len(suffix) - 1]
                return (module, suffix) if suffix != _PLAIN or f"{module}.on_input" in source.keys else None
        return None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        """LoHa and LoKr that diffusers trained with PEFT have these suffixes too, and their scale in the header."""
        return stated_scale(module, dict(group), source)

    def write(self, adapters: AdapterSet) -> Contents:
        """Factors in their dtypes. Raises Unsupported for two adapters of one weight, but for a residual."""
        tensors = {f"{module}.{suffix}": t for module, written in tensors_of(adapters) for suffix, t in written.items()}
        return Contents(tensors, adapters.metadata)


def tensors_of(adapters: AdapterSet) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The module and the tensors by suffix of each entry; a difference beside other factors is a sparse residual."""
    seen = set()
    for entry in adapters.entries:
        written = entry.adapter.written(entry.leaf)
        if (entry.module, entry.leaf) in seen and entry.leaf == "weight":
            if not isinstance(entry.adapter, Full):
                raise Unsupported(f"{entry.module}: two adapters of one weight have no place under its name")
            written = _residual(entry.adapter.diff)
        seen.add((entry.module, entry.leaf))
        yield entry.module, written


def _residual(difference: Tensor) -> dict[str, Tensor]:
    sparse = difference.to_sparse()
    size = torch.tensor(difference.shape)
    return {"bias_indices": sparse.indices(), "bias_values": sparse.values(), "bias_size": size}
