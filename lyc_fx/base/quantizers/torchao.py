"""Weights that torchao has quantized: tensor subclasses, made from values by their class's `from_hp`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import signature
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional

from lyc_fx.base.quantizers.quantized import Quantized
from lyc_fx.base.quantizers.subclass import QuantizedTensor, is_subclass
from lyc_fx.errors import Unsupported

_PACKAGE = "torchao."


def is_torchao(tensor: Tensor) -> bool:
    """Whether a tensor is of a class of torchao for weights."""
    return is_subclass(tensor) and type(tensor).__module__.startswith(_PACKAGE)


@final
@dataclass(frozen=True, eq=False)
class Torchao(QuantizedTensor):
    """A weight of one of torchao's classes."""

    def dequantized(self, dtype: torch.dtype) -> Tensor:
        stored: Any = self.stored
        if hasattr(stored, "get_original_weight"):  # NF4, whose `dequantize` is for something else
            values = stored.get_original_weight()
        elif type(stored).dequantize is Tensor.dequantize:
            values = _by_its_product(stored)
        elif "output_dtype" in signature(stored.dequantize).parameters:
            values = stored.dequantize(dtype)
        else:
            values = stored.dequantize()
        values = values.detach().to(dtype)
        scale = getattr(stored, "act_pre_scale", None)
        return values if scale is None else values * scale.to(dtype)  # of its inputs, before the product

    def requantized(self, value: Tensor) -> nn.Parameter:
        stored: Any = self.stored
        make = getattr(type(stored), "from_hp", None)
        if make is None or getattr(stored, "act_pre_scale", None) is not None:
            return Quantized.requantized(self, value)
        wanted = signature(make).parameters
        options = {name: option for name, option in _options(stored) if name in wanted}
        made = make(value.to(self.dtype), **options)
        if _form(made) != _form(stored):
            raise Unsupported(
                f"is a {self.kind} of a form that its from_hp does not give for these options, {sorted(options)}: run "
                "the adapter beside it with lyc_fx.attach, or merge before the model is quantized"
            )
        return nn.Parameter(made, requires_grad=False)


def _by_its_product(stored: Tensor) -> Tensor:
    """The weight as its kernel multiplies by it: the product with the identity."""
    identity = torch.eye(stored.shape[1], dtype=stored.dtype, device=stored.device)
    return functional.linear(identity, stored).t().contiguous()


def _options(stored: Any) -> Iterator[tuple[str, Any]]:
    """How a weight was quantized, in the words of its class's `from_hp`."""
    yield from vars(stored).items()
    yield "float8_dtype", stored.qdata.dtype
    yield "granularity", _granularity(stored.block_size, tuple(stored.shape))
    point = getattr(stored, "zero_point", None)
    symmetric = point is None or not bool(point.any())
    yield "mapping_type", _of("quant_primitives", "MappingType")["SYMMETRIC" if symmetric else "ASYMMETRIC"]
    for chosen_anew in ("scale", "zero_point"):
        yield chosen_anew, None


def _granularity(block: Sequence[int], shape: Sequence[int]) -> Any:
    """The name that torchao has for blocks of this shape, each of which has a scale."""
    if tuple(block) == tuple(shape):
        return _of("granularity", "PerTensor")()
    if any(size != 1 for size in block[:-1]):
        return _of("granularity", "PerBlock")(tuple(block))
    return _of("granularity", "PerRow")() if block[-1] == shape[-1] else _of("granularity", "PerGroup")(block[-1])


def _of(module: str, name: str) -> Any:
    return getattr(import_module(f"{_PACKAGE}quantization.{module}"), name)


def _form(stored: Any) -> Any:
    """All that is no number: the class, its tensors' shapes and dtypes, and its attributes."""
    tensors, attributes = stored.__tensor_flatten__()
    parts = {name: (tuple(getattr(stored, name).shape), getattr(stored, name).dtype) for name in tensors}
    return type(stored), parts, attributes
