"""Checking the arguments of `capture`, before torch.export misreads them."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from lyc_fx.base.foreign import capture_refusal
from lyc_fx.errors import CaptureError


def refuse_misplaced(model: Any, args: Any, kwargs: Any) -> None:
    """Raise CaptureError for arguments that `capture` does not take.

    Such as: an object that is not a model, a model with foreign weights, an input that is not in a tuple, and shapes in
    the place of kwargs.
    """
    if isinstance(model, ExportedProgram):
        return
    if not isinstance(model, nn.Module):
        raise CaptureError(f"capture takes an nn.Module or an ExportedProgram, not {type(model).__name__}")
    if (reason := capture_refusal(model)) is not None:
        raise CaptureError(reason)
    if isinstance(args, Tensor):  # which is a sequence of its rows
        shape = tuple(args.shape)
        raise CaptureError(f"args is a tensor of shape {shape}: write capture(model, (x,)), a tuple of inputs")
    if isinstance(args, Mapping):
        raise CaptureError("args is a mapping of inputs by name: write capture(model, (), inputs), or kwargs=inputs")
    if not isinstance(args, (tuple, list)):
        raise CaptureError(f"args is a {type(args).__name__}: write capture(model, (x,)), a tuple of inputs")
    if isinstance(kwargs, str):
        raise CaptureError(f"kwargs is {kwargs!r}: write capture(model, args, dynamic_shapes={kwargs!r})")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        kind = type(kwargs).__name__
        raise CaptureError(f"kwargs is a {kind}: write capture(model, args, {{name: x}}), inputs by name")
