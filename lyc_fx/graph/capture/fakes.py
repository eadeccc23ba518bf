"""Copying a model with fake parameters and buffers, so that capture needs little memory and time."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError


def fake_copy(model: nn.Module, device: torch.device) -> tuple[nn.Module, FakeTensorMode]:
    """Return a copy of a model with fake tensors of the same dtypes and devices, and their fake mode.

    Tensors on the meta device are on `device` in the copy. Tied tensors stay tied. Every floating-point parameter
    requires grad in the copy, so that the model takes no fused inference path. Raises CaptureError for a model that
    cannot be copied.
    """
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                stand_in = nn.Parameter(_fake(mode, parameter, device), parameter.is_floating_point())
                memo.setdefault(id(parameter), stand_in)
        plain = (v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf)
        for tensor in (*(b for b in module._buffers.values() if b is not None), *plain):
            memo.setdefault(id(tensor), _fake(mode, tensor, device))
    try:
        return copy.deepcopy(model, memo), mode
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied for capture ({type(error).__name__}: {error}). "
            "Remove attributes that copy.deepcopy refuses (open files, locks, hooks bound to other objects)."
        ) from error


def _fake(mode: FakeTensorMode, tensor: Tensor, device: torch.device) -> Tensor:
    with mode:
        return torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device if tensor.is_meta else tensor.device
        )


def device_of(model: nn.Module, inputs: Any) -> torch.device:
    """Return where the program will run: the device of the inputs, else of the parameters, else the CPU."""
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    devices = [t.device for t in (*tensors, *model.parameters()) if t.device.type != "meta"]
    return devices[0] if devices else torch.device("cpu")
