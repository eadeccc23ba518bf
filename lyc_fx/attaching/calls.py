"""Layers whose call is captured as a program of its own: an example of their input, and inputs of other ranks."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from lyc_fx.base.conv1d import is_conv1d
from lyc_fx.errors import Unsupported
from lyc_fx.graph.program import BANK


@final
@dataclass(frozen=True)
class LayerCall:
    """How a kind of layer is called: the program of a layer takes one tensor, of one rank."""

    example: Callable[[Any], Tensor]
    """Of the input"""
    dims: str
    """The input's dimensions, as `capture` names them"""
    enter: Callable[[Tensor], Tensor]
    """From an input as the layer takes it to that of the program"""
    leave: Callable[[Tensor, Tensor], Tensor]
    """From the input as the layer takes it and the program's output to the layer's output"""
    multiplies: bool = True
    """Whether autocast applies to it"""
    options: Callable[[Any], tuple[Any, ...]] = lambda layer: ()
    """What code may change on a living layer, and the program has as it was"""


def layer_call(module: nn.Module) -> LayerCall | None:
    """How a layer is called, if it is of a kind that has chains, and runs the code of torch's class."""
    forward = type(module).forward
    if parametrize.is_parametrized(module) or module._modules.keys() - {BANK}:
        return None
    if forward is nn.Linear.forward or is_conv1d(type(module)):
        return ROWS
    if forward is nn.Embedding.forward:
        return INDICES
    if isinstance(module, _ConvNd) and torchs_class(module) is not None and "_conv_forward" not in module.__dict__:
        return _IMAGES[module.weight.dim() - 2]
    return None


def torchs_class(module: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose code a layer runs, which may be a base class; None if it has code of its own."""
    kind = type(module)
    for known in (nn.Linear, nn.Embedding, *_CONVOLUTIONS):
        if kind.forward is known.forward:
            own = getattr(kind, "_conv_forward", None) is not getattr(known, "_conv_forward", None)
            return None if own else known
    return None


_CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip


def _row(layer: Any) -> Tensor:
    width = layer.weight.shape[0] if is_conv1d(type(layer)) else layer.weight.shape[1]
    return torch.zeros(3, width, dtype=layer.weight.dtype, device=layer.weight.device)


def _to_rows(x: Tensor) -> Tensor:
    return x.unsqueeze(0) if x.dim() == 1 else x.flatten(0, -2)  # reshape(-1, …) would divide by a size


def _from_rows(x: Tensor, y: Tensor) -> Tensor:
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], y.shape[-1])


def _index(layer: Any) -> Tensor:
    return torch.zeros(3, dtype=torch.int64, device=layer.weight.device)


def _image(layer: Any) -> Tensor:
    sizes = [d * (k - 1) + s + 3 for k, s, d in zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)]
    return torch.zeros(2, layer.in_channels, *sizes, dtype=layer.weight.dtype, device=layer.weight.device)


def _convolution(layer: Any) -> tuple[Any, ...]:
    return layer.stride, layer.padding, layer.dilation, layer.padding_mode


def _images(dims: int) -> LayerCall:
    def enter(x: Tensor) -> Tensor:
        if x.dim() not in (dims + 1, dims + 2):
            raise Unsupported(f"a convolution of {dims} dimensions got an input of shape {tuple(x.shape)}")
        return x if x.dim() == dims + 2 else x.unsqueeze(0)

    def leave(x: Tensor, y: Tensor) -> Tensor:
        return y if x.dim() == dims + 2 else y.squeeze(0)

    names = " ".join(["length", "height", "width"][-dims:] if dims < 3 else ["depth", "height", "width"])
    return LayerCall(_image, f"batch _ {names}", enter, leave, options=_convolution)


ROWS = LayerCall(_row, "rows _", _to_rows, _from_rows)
INDICES = LayerCall(
    _index, "rows", lambda x: x.reshape(-1), lambda x, y: y.reshape(*x.shape, y.shape[-1]), multiplies=False
)
_IMAGES = {dims: _images(dims) for dims in (1, 2, 3)}
