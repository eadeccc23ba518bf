"""A quantizer of the tests: a tensor subclass of int8 numbers and a scale for each row."""

from typing import Any

import torch
from torch import Tensor, nn

COUNTS = {"products": 0, "dequantized": 0}
"""How often the class's own linear layer was called, and its values were asked for"""


class Rounded(Tensor):
    """`W[i, :] = numbers[i, :] · scale[i]`."""

    numbers: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor, scale: Tensor) -> "Rounded":
        return Tensor._make_wrapper_subclass(cls, numbers.shape, dtype=scale.dtype, device=scale.device)  # type: ignore[attr-defined]

    def __init__(self, numbers: Tensor, scale: Tensor) -> None:
        self.numbers, self.scale = numbers, scale

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["numbers", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], attributes: None, size: object, stride: object) -> "Rounded":
        return Rounded(inner["numbers"], inner["scale"])

    @classmethod
    def of(cls, value: Tensor, levels: int = 127) -> "Rounded":
        scale = value.abs().amax(1, keepdim=True) / levels
        return cls((value / scale).round().to(torch.int8), scale)

    def dequantize(self) -> Tensor:
        COUNTS["dequantized"] += 1
        return self.numbers.to(self.scale.dtype) * self.scale

    def requantize(self, value: Tensor) -> "Rounded":
        return Rounded.of(value, int(self.numbers.abs().max()))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
            COUNTS["products"] += 1
            y = (x @ weight.numbers.to(x.dtype).t()) * weight.scale.squeeze(1).to(x.dtype)
            return y if bias is None else y + bias.to(x.dtype)
        return super().__torch_function__(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.clone.default, torch.ops.aten._to_copy.default):
            return Rounded(func(args[0].numbers), func(args[0].scale, **(kwargs or {})))
        raise NotImplementedError(f"{func} of a rounded weight")


def quantize(model: nn.Module, levels: int = 127) -> nn.Module:
    """Let every linear layer of a model have a rounded weight."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight = nn.Parameter(Rounded.of(module.weight.detach(), levels), requires_grad=False)
    return model


def dequantize(model: nn.Module) -> nn.Module:
    """Give the linear layers of a model plain weights of the values that they have."""
    for module in model.modules():
        if isinstance(module, nn.Linear) and isinstance(module.weight, Rounded):
            module.weight = nn.Parameter(module.weight.dequantize(), requires_grad=False)
    return model
