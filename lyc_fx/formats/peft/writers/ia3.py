"""IA3: feedforward modules are scaled on the input, others on the output, with their bias."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.algorithms.gain import Gain
from lyc_fx.algorithms.ia3 import IA3
from lyc_fx.formats.peft.writers.module import Module, Writer


@final
class Ia3Writer(Writer):
    method = "IA3"
    family = IA3

    def fault(self, module: Module) -> str | None:
        adapter, bias = module.adapter, [entry.adapter for entry in module.bias]
        assert isinstance(adapter, IA3)
        if module.new:
            return "PEFT's IA3 has no new weight or bias of an adapted module"
        if adapter.on_input:
            return f"{bias[0].name} of its bias" if bias else None
        if not bias:
            return "PEFT scales the bias with the output, this adapter does not"
        if not isinstance(bias[0], Gain) or not torch.equal(bias[0].gain.flatten(), adapter.weight.flatten()):
            return "its bias is not scaled like its output"
        return None

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        """`l = 1 + w`: `(1, channels, 1…)` of a convolution, else `(1, in)` or `(out, 1)`."""
        adapter = module.adapter
        assert isinstance(adapter, IA3)
        scale = 1 + adapter.weight.double()
        ones = [1] * (adapter.weight.dim() - 2)
        shape = [1, -1, *ones] if adapter.on_input or ones else [-1, 1]
        return {"ia3_l": scale.reshape(shape).float()}

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        inner = [m.name for m in modules if isinstance(m.adapter, IA3) and m.adapter.on_input]
        # A text is a regular expression for the whole name; a list would also match other names with these ends.
        return {"feedforward_modules": "|".join(map(re.escape, inner)) if inner else [], "fan_in_fan_out": False}
