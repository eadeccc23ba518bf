"""LoRA keys of diffusers, in its three generations, and their cousins from ComfyUI, ai-toolkit and others:

- `unet.<module>.lora_A.weight`, `….lora_B.weight` (or without `.weight`);
- `unet.<module>.lora.down.weight`, `….lora.up.weight`, and `….lora_linear_layer.down.weight` of text encoders;
- `unet.<block>.attn1.processor.to_q_lora.down.weight`.

A component (`unet.`, `transformer.`, `text_encoder.`, `diffusion_model.` …) may stand before the module, and the name
of an adapter behind a factor. Without an alpha the scale is 1, unless the header's `lora_adapter_metadata`, or an
`adapter_config.json` beside the file, holds the configuration of the training.
"""

import re
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import Unsupported
from lyc_fx.formats.format import Contents, Format, Source
from lyc_fx.formats.reading.layouts import lycoris_layouts
from lyc_fx.formats.reading.stated import stated_scale

_DOWN, _UP = "lora_down.weight", "lora_up.weight"
_TAILS = {
    f"{mark}{name}{ending}": suffix
    for mark, ending in ((".", ".weight"), (".", ""))
    for name, suffix in (("lora_A", _DOWN), ("lora_B", _UP))
} | {
    f"{mark}{name}.weight": suffix
    for mark in (".lora.", ".lora_linear_layer.", "_lora.")
    for name, suffix in (("down", _DOWN), ("up", _UP))
}
_TAILS |= {".lora_B.bias": "diff_b"}
_TAILS |= {f".lora_magnitude_vector{ending}": "dora_scale" for ending in ("", ".weight")}
_LONGEST_FIRST = sorted(_TAILS, key=len, reverse=True)
_NAMED = re.compile(r"\.(lora_[AB]|lora_magnitude_vector)\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)")
"""A factor with the name of its adapter, which PEFT has in a model's state dict"""
_LYCORIS = ("diff_b", "dora_scale")
"""Suffixes that these keys share with LyCORIS's, where they mean something else"""


@final
class Diffusers(Format):
    """Dotted module names with `lora_A` and `lora_B`, or older spellings of them."""

    name = "diffusers"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        key = _NAMED.sub(r".\1", key)
        for tail in _LONGEST_FIRST:
            if key.endswith(tail):
                return _module(key[: -len(tail)]), _TAILS[tail]
        return None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        full = stated_scale(module, dict(group), source)
        # LyCORIS's own keys have its layout, also beside lora_A: OneTrainer's magnitude is one per input.
        own = {suffix: full.pop(suffix) for suffix in _LYCORIS if f"{module}.{suffix}" in source.keys}
        return lycoris_layouts(full) | own

    def write(self, adapters: AdapterSet) -> Contents:
        """Factors of plain LoRA, with the scale multiplied into `lora_B`, which is float32 then."""
        tensors = {}
        for entry in adapters.entries:
            adapter = entry.adapter
            if not isinstance(adapter, LoCon) or adapter.mid is not None or adapter.magnitude is not None:
                raise Unsupported(
                    f"{entry.module}: diffusers keys hold plain LoRA, not {adapter.name} {adapter.variant}"
                )
            tensors[f"{entry.module}.lora_A.weight"] = adapter.down
            tensors[f"{entry.module}.lora_B.weight"] = _scaled(adapter.up, adapter.scale)
        return Contents(tensors, adapters.metadata)


def _scaled(up: Tensor, scale: float) -> Tensor:
    """In float32 at least: a 16-bit factor times a scale is seldom a 16-bit number."""
    return up if scale == 1 else (up.double() * scale).to(torch.promote_types(up.dtype, torch.float32))


def _module(path: str) -> str:
    """`….attn1.processor.to_out` → `….attn1.to_out.0`; other paths stay."""
    owner, found, leaf = path.rpartition(".processor.")
    return f"{owner}.{'to_out.0' if leaf == 'to_out' else leaf}" if found else path
