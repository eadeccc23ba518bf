"""Weights of a class of tensors that can dequantize itself, such as one of your own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from lyc_fx.base.quantizers.quantized import Quantized


def is_subclass(tensor: Tensor) -> bool:
    """Whether a class of tensors of its own says what operators do with it, and it stands for floating-point values."""
    own = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return own and not isinstance(tensor, FakeTensor) and tensor.dtype.is_floating_point


def dequantizes(tensor: Tensor) -> bool:
    """Whether a class of tensors has a `dequantize` of its own; torch's is for torch's own quantized tensors."""
    return is_subclass(tensor) and type(tensor).dequantize is not Tensor.dequantize


@dataclass(frozen=True, eq=False)
class QuantizedTensor(Quantized):
    """`dequantize()` gives the values; `requantize(value)`, where the class has it, another one of the same form."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.stored.dtype

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        return self.stored.dequantize().detach().to(dtype)

    def requantized(self, value: Tensor) -> nn.Parameter:
        stored: Any = self.stored
        if not hasattr(type(stored), "requantize"):
            return super().requantized(value)
        return nn.Parameter(stored.requantize(value.to(self.dtype)), requires_grad=False)
