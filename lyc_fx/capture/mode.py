"""Training or evaluation: which of the two a program was captured in is part of its graph."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import CaptureError

_WORDS = ("dropout", "batch_norm", "instance_norm", "rrelu")


@final
class ModeGuard:
    """A forward pre-hook that refuses a program whose `.train()` or `.eval()` was called: it changes no graph."""

    def __init__(self, *, training: bool) -> None:
        self._training = training

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if module.training != self._training:
            mode, asked = ("training", "eval()") if self._training else ("evaluation", "train()")
            raise CaptureError(
                f"the program was captured in {mode} mode, and .{asked} does not change a graph: capture model.{asked} "
                f"again, or take .{asked} back"
            )


def evaluates(gm: GraphModule) -> None:
    """Let a program's guard know that it has become one for evaluation."""
    for key, hook in list(gm._forward_pre_hooks.items()):
        if isinstance(hook, ModeGuard):  # which other programs share
            gm._forward_pre_hooks[key] = ModeGuard(training=False)


def mode_matters(model: nn.Module) -> bool:
    """Whether a module may compute otherwise in training: its class asks for `training`, or its graph draws or learns.

    torch's own base class sets the flag and does not count.
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
