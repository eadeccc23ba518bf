"""VERA: one A and one B for all modules, of which each has the first columns and rows."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.vera import VeRA
from lyc_fx.errors import Unsupported
from lyc_fx.formats.peft.vera import MATRICES, PREFIX, VECTORS
from lyc_fx.formats.peft.writers.module import Module, Writer, same


@final
class VeraWriter(Writer):
    method = "VERA"
    family = VeRA

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        return {suffix: tensor for suffix, tensor in module.adapter.written("weight").items() if suffix in VECTORS}

    def common(self, modules: Sequence[Module]) -> Mapping[str, Tensor]:
        made = [m.adapter for m in modules if isinstance(m.adapter, VeRA)]
        pairs = [[matrix(a.a) for a in made], [a.b for a in made]]
        return {f"{PREFIX}{name}": _largest(name, found) for name, found in zip(MATRICES, pairs, strict=True)}

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        return {
            "r": same("rank", [m.adapter.rank for m in modules]),
            "save_projection": True,
            "fan_in_fan_out": False,
            "bias": "all" if any(m.new for m in modules) else "none",
        }


def _largest(name: str, found: Sequence[Tensor]) -> Tensor:
    """The one that all others are the beginning of."""
    largest = max(found, key=Tensor.numel)
    for each in found:
        rows, columns = each.shape
        if each.dtype != largest.dtype or not torch.equal(largest[:rows, :columns], each):
            raise Unsupported(
                f"PEFT has one {name} for all modules, here there are several: write one file's adapters alone, or "
                "convert them to LoRA"
            )
    return largest
