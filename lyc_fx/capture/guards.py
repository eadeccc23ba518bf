"""What a captured program was specialized to is checked at each call, in words."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import nn
from torch.utils import _pytree as pytree

from lyc_fx.capture.outputs import baked
from lyc_fx.errors import CaptureError


@final
class InputGuards:
    """A forward pre-hook that runs the guards of `torch.export` on the inputs of a call.

    `constants` are the Python values inside the example's objects (`outputs.baked`); a call must have the same.
    """

    def __init__(self, guards: nn.Module, names: tuple[str, ...], constants: Sequence[tuple[str, Any]]) -> None:
        self._guards = guards
        self._names = names
        self._constants = constants

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = list(args) + [kwargs[name] for name in self._names[len(args) :] if name in kwargs]
        if len(values) != len(self._names):
            return  # the call itself says which argument is missing
        for (name, wanted), (_, given) in zip(self._constants, baked(values), strict=False):
            if given != wanted:
                raise CaptureError(f"{name} is {given}; the program was captured with {wanted}: capture it again.")
        try:
            self._guards(*pytree.tree_leaves(values))
        except (AssertionError, RuntimeError) as error:
            raise CaptureError(
                f"{error}. The program was captured for other inputs: capture with dynamic_shapes, or again."
            ) from error
