"""Keys of parameter trees as in JAX: `blocks/0/up/lora_a`, with matrices `(in, out)` that stand right of `x`."""

from collections.abc import Mapping
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import Unsupported
from lyc_fx.formats import Contents, Format
from lyc_fx.formats.format import Source

_SUFFIXES = {
    "lora_a": "lora_down.weight", "lora_b": "lora_up.weight",
    "xs_a": "xs_A", "xs_r": "xs_R", "xs_b": "xs_B", "alpha": "alpha",
}  # fmt: skip
_LEAVES = {suffix: leaf for leaf, suffix in _SUFFIXES.items()}


@final
class Slashes(Format):
    """Keys with slashes, of LoRA and LoRA-XS on linear layers."""

    name = "slashes"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        path, _, leaf = key.rpartition("/")
        return (path.replace("/", "."), _SUFFIXES[leaf]) if path and leaf in _SUFFIXES else None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        return {suffix: tensor.t() if tensor.dim() == 2 else tensor for suffix, tensor in group.items()}

    def write(self, adapters: AdapterSet) -> Contents:
        tensors = {}
        for entry in adapters.entries:
            for suffix, tensor in entry.adapter.written(entry.leaf).items():
                if suffix not in _LEAVES or tensor.dim() > 2:
                    raise Unsupported(f"{entry.module}: this format has LoRA and LoRA-XS of linear layers only")
                tensors[f"{entry.module.replace('.', '/')}/{_LEAVES[suffix]}"] = tensor.t().contiguous()
        return Contents(tensors, adapters.metadata)
