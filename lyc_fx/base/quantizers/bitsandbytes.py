"""Linear layers of bitsandbytes: weights of 8 bits with a scale for each row, and of 4 bits with one for each block."""

import copy
from dataclasses import dataclass
from importlib import import_module
from typing import Any, final

import torch
from torch import Tensor, nn

from lyc_fx.base.quantizers.quantized import Quantized


def is_8bit(tensor: Tensor) -> bool:
    """Whether a weight is one of `Linear8bitLt`, and quantized already (it is when it is first moved to a device)."""
    return type(tensor).__name__ == "Int8Params" and tensor.dtype == torch.int8


def is_4bit(module: nn.Module, tensor: Tensor) -> bool:
    """Whether a weight is one of `Linear4bit`, and quantized already."""
    return type(tensor).__name__ == "Params4bit" and _state(module, tensor) is not None


@final
@dataclass(frozen=True, eq=False)
class Bits8(Quantized):
    """`W[i, :] = C[i, :] · s[i] / 127`, with C of int8."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> torch.dtype:
        """That of the bias. Without one nothing of the layer says it, and float32 has every dtype's digits."""
        bias = self.module._parameters.get("bias")
        return torch.float32 if bias is None else bias.dtype

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        weight, state = _any(self.stored), _any(self.module).state  # at its first call the layer moves them there
        rows = state.SCB if weight.SCB is None else weight.SCB
        return (weight.detach().float().as_subclass(Tensor) * (rows.float() / 127)[:, None]).to(dtype)

    def requantized(self, value: Tensor) -> nn.Parameter:
        stored = _any(self.stored)
        made = type(stored)(value.half().cpu(), requires_grad=False, has_fp16_weights=False)
        return made.to(stored.device)


@final
@dataclass(frozen=True, eq=False)
class Bits4(Quantized):
    """`W = code[c] · s[block]`, packed into bytes; the true shape is in the state beside it."""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(_state(self.module, self.stored).shape)

    @property
    def dtype(self) -> torch.dtype:
        state = _state(self.module, self.stored)
        return state.original_dtype if _is_packed_for_cpu(state) else state.dtype

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        functions: Any = import_module("bitsandbytes.functional")
        state = copy.copy(_state(self.module, self.stored))
        packed = self.stored.detach().as_subclass(Tensor)
        if _is_packed_for_cpu(state):  # its kernel for CPUs has put the bytes into another order, and rounded scales
            scales = state.absmax
            state.original_nested = False
            packed, state = functions._convert_weight_packed_for_cpu_inverse(packed, state)
            state.absmax = scales.T.float().reshape(-1)
        state.dtype = torch.float32
        return functions.dequantize_4bit(packed, state).to(dtype)

    def requantized(self, value: Tensor) -> nn.Parameter:
        stored = _any(self.stored)
        made = type(stored)(
            value.to(self.dtype),
            requires_grad=False,
            blocksize=stored.blocksize,
            compress_statistics=stored.compress_statistics,
            quant_type=stored.quant_type,
            quant_storage=stored.quant_storage,
        )
        return made.to(stored.device)

    def put(self, parameter: Tensor) -> None:
        super().put(parameter)
        if getattr(self.module, "quant_state", None) is not None:  # the layer's own reference to the weight's state
            _any(self.module).quant_state = _any(parameter).quant_state


def _state(module: nn.Module, tensor: Tensor) -> Any:
    """Shapes and scales; FSDP leaves them to the module alone."""
    own = getattr(tensor, "quant_state", None)
    return getattr(module, "quant_state", None) if own is None else own


def _is_packed_for_cpu(state: Any) -> bool:
    return bool(getattr(state, "packing_format_for_cpu", False))


def _any(found: Any) -> Any:
    return found
