"""What a captured program was specialized to is checked at each call, in words."""

from collections.abc import Mapping
from typing import Any, final

from torch import nn
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError


@final
class InputGuards:
    """A forward pre-hook that runs the guards of `torch.export` on the inputs of a call."""

    def __init__(self, guards: nn.Module, names: tuple[str, ...]) -> None:
        self._guards = guards
        self._names = names

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = list(args) + [kwargs[name] for name in self._names[len(args) :] if name in kwargs]
        if len(values) != len(self._names):
            return  # the call itself says which argument is missing
        try:
            self._guards(*pytree.tree_leaves(values))
        except (AssertionError, RuntimeError) as error:
            raise CaptureError(
                f"{error}. The program was captured for other inputs: capture with dynamic_shapes, or again."
            ) from error
