"""Training and evaluation mode: the mode in which a program was captured is part of its graph."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import CaptureError

_WORDS = ("dropout", "batch_norm", "instance_norm", "rrelu")


@final
class ModeGuard:
    """A forward pre-hook that raises if `.train()` or `.eval()` was called on a program, since it changes no graph."""

    def __init__(self, *, training: bool) -> None:
        self._training = training

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module.training != self._training:
            mode, asked = ("training", "eval()") if self._training else ("evaluation", "train()")
            raise CaptureError(
                f"the program was captured in {mode} mode, and .{asked} does not change a graph: capture model.{asked} "
                f"instead, or undo .{asked}"
            )


def evaluates(gm: GraphModule) -> None:
    """Replace a program's guard by one for evaluation mode."""
    for key, hook in list(gm._forward_pre_hooks.items()):
        if isinstance(hook, ModeGuard):  # replaced, not changed: other programs share it
            gm._forward_pre_hooks[key] = ModeGuard(training=False)


def mode_matters(model: nn.Module) -> bool:
    """Return whether a module may compute something else in training mode.

    That is so if the code of a class reads `training` (apart from `nn.Module`, which sets it), or if a graph has an
    operator such as dropout or batch norm.
    """
    if isinstance(model, GraphModule):
        return any(
            isinstance(n.target, torch._ops.OpOverload) and any(word in n.target.name() for word in _WORDS)
            for n in model.graph.nodes
        )
    return any(_asks(base) for base in {base for module in model.modules() for base in type(module).__mro__[:-1]})


def _asks(cls: type) -> bool:
    if cls is nn.Module:
        return False
    codes = [getattr(getattr(each, "fget", each), "__code__", None) for each in vars(cls).values()]
    return any("training" in code.co_names for code in codes if code is not None)
