"""Recognizing models that a quantizer has packed, by the tensors that it stores in place of the weights.

Adapters fit only the weights from before quantization.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import torch

_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GPTQ", (".qweight", ".qzeros", ".g_idx")),
    ("bitsandbytes (nf4)", (".weight.absmax", ".weight.quant_state.bitsandbytes__nf4")),
    ("bitsandbytes (fp4)", (".weight.absmax", ".weight.quant_state.bitsandbytes__fp4")),
    ("bitsandbytes", (".weight.absmax", ".weight.quant_map")),
    ("bitsandbytes", (".SCB",)),
    ("compressed-tensors (NVFP4)", (".weight_packed", ".weight_global_scale")),
    ("compressed-tensors", (".weight_packed", ".weight_scale")),
    ("compressed-tensors", (".weight_packed", ".weight_shape")),
    ("MXFP4", ("_blocks", "_scales")),
    ("fp8-block", ("_scale_inv",)),
    ("MLX", (".scales", ".biases")),
    ("HQQ", (".W_q",)),
    ("EETQ or optimum-quanto", (".weight._data", ".weight._scale")),
)
"""Quantizers, each with the suffixes of the tensors that it stores in place of a weight"""
_METHODS = {"gptq": "GPTQ", "awq": "AWQ", "mxfp4": "MXFP4", "fp8": "fp8-block"}
"""From transformers' `quant_method` to our name of it, where that differs"""


class Stored(Protocol):
    """A tensor, or what is known of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


def quantizer_of(stored: Mapping[str, Stored]) -> tuple[str, str] | None:
    """Return which quantizer made a model with these tensors, and the name of one that shows it; None: none did."""
    for quantizer, ends in _MARKS:
        found = next(_named(stored, ends), None)
        if found is not None:
            return quantizer, found
    for name in _named(stored, (".qweight", ".qzeros")):  # both pack eight numbers into one: one the outputs, one not
        alike = stored[name].shape[-1:] == stored[name.removesuffix("qweight") + "qzeros"].shape[-1:]
        scales = stored.get(name.removesuffix("qweight") + "scales")
        turned = scales is not None and stored[name].shape[-1:] == scales.shape[-1:]
        return "GPTQ or AWQ" if alike == turned else "AWQ" if alike else "GPTQ", name
    for name in _named(stored, (".weight_scale", ".weight")):
        dtype = stored[name.removesuffix("_scale")].dtype
        if dtype == torch.int8 or (dtype.itemsize == 1 and stored[name].dtype != torch.float32):
            return "compressed-tensors", name
    return None


def method_in(config: Mapping[str, Any]) -> str | None:
    """Return the quantizer that a configuration of transformers or diffusers names, or None."""
    given = config.get("quantization_config")
    method = given.get("quant_method") if isinstance(given, dict) else None
    if not isinstance(given, dict) or not isinstance(method, str):
        return None
    more = given.get("bnb_4bit_quant_type") if given.get("load_in_4bit") else given.get("format")
    return _METHODS.get(method, method) + (f" ({more})" if isinstance(more, str) else "")


def _named(stored: Iterable[str], ends: tuple[str, ...]) -> Iterator[str]:
    """Yield the names that end with the first of these, and beside which there are the others."""
    every = set(stored)
    for name in sorted(every):
        if name.endswith(ends[0]) and all(name.removesuffix(ends[0]) + end in every for end in ends):
            yield name
