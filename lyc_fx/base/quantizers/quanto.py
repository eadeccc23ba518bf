"""Weights of optimum-quanto's layers, which know themselves how to quantize one."""

import copy
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from lyc_fx.base.quantizers.subclass import QuantizedTensor, dequantizes


def is_quanto(module: nn.Module, tensor: Tensor) -> bool:
    """Whether a weight is one of optimum-quanto's, in a layer of its own, and frozen."""
    return dequantizes(tensor) and hasattr(type(module), "qweight") and hasattr(module, "weight_qtype")


@final
@dataclass(frozen=True, eq=False)
class Quanto(QuantizedTensor):
    """A weight that its layer makes as `qweight`, from one that is not quantized yet."""

    def requantized(self, value: Tensor) -> nn.Parameter:
        layer: Any = copy.copy(self.module)
        layer._parameters = {**self.module._parameters, self.name: nn.Parameter(value.to(self.dtype), False)}
        return nn.Parameter(layer.qweight, requires_grad=False)
