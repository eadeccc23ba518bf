"""ComfyUI's keys: LyCORIS's suffixes after a path such as `diffusion_model.<module>`, and a few of its own.

Read here: `x.reshape_weight`, the shape to which ComfyUI pads the weight with zeros before the adapter. It becomes
`Entry.shape`, and binding refuses it where it is not the weight's own shape. All other keys that ComfyUI reads are
those of `formats.lycoris` (with `diff`, `diff_b`, `w_norm`, `b_norm`: added, times strength) and
`formats.diffusers` (`x_lora.up.weight`, `x.lora_B`, `x.lora.up.weight`, …).

Written: what ComfyUI (read in 2025-10) computes as lyc-fx does at strength 1. It has no IA3, no T-LoRA, no rescale
of Diag-OFT, and one change of each weight: these are refused, and what it reads otherwise is rewritten
(`formats.comfyui_rules`). The effects still differ in ComfyUI itself:

- DoRA with a magnitude per output: it divides by the norm of W, not of W + ΔW;
- Diag-OFT and BOFT at strength s: it applies s twice;
- `diff` of another shape than the weight's, such as the flat residual of an extraction: it is skipped.
"""

from collections import Counter
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import Unsupported, counted, listing
from lyc_fx.formats.comfyui_rules import readable
from lyc_fx.formats.format import Contents, Format, Source

_RESHAPE = "reshape_weight"
_MODULATION = "diff_m"
"""The change of a parameter `modulation` of the module that is named, as lightx2v's files for Wan have it"""


@final
class Comfyui(Format):
    """What ComfyUI has besides the keys of LyCORIS and diffusers, and files that it reads as they are meant."""

    name = "comfyui"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        module, _, suffix = key.rpartition(".")
        if module and suffix == _MODULATION:
            return f"{module}.modulation", "diff"
        return (module, suffix) if module and suffix == _RESHAPE else None

    def write(self, adapters: AdapterSet) -> Contents:
        tensors: dict[str, Tensor] = {}
        faults = []
        weights = Counter(entry.module for entry in adapters.entries if entry.leaf == "weight")
        for entry in adapters.entries:
            try:
                if weights[entry.module] > 1:
                    raise Unsupported("ComfyUI keeps one change of each weight, and drops the others")
                written = readable(entry.adapter, entry.leaf)
            except Unsupported as error:
                faults.append(f"  {entry.module}: {error}")
                continue
            tensors |= {f"{entry.module}.{suffix}": tensor for suffix, tensor in written.items()}
            if entry.shape is not None:
                tensors[f"{entry.module}.{_RESHAPE}"] = torch.tensor(entry.shape)
        if faults:
            raise Unsupported(listing(f"{counted(len(faults), 'adapter')} cannot be written for ComfyUI:", faults))
        alone = [key for key in tensors if key.endswith(".b_norm") and f"{key[:-6]}w_norm" not in tensors]
        for key in alone:  # ComfyUI looks for it beside w_norm only
            tensors[f"{key[:-6]}diff_b"] = tensors.pop(key)
        return Contents(tensors, adapters.metadata)
