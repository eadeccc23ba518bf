"""Checking at each call of a captured program that the inputs fit what it was specialized to."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.outputs import baked_constants


@final
class InputGuards:
    """A forward pre-hook that runs the guards of `torch.export` on the inputs of a call.

    `constants` are the Python values inside the example's objects (`outputs.baked_constants`); a call must have the
    same. `inputs` are the names of the flat inputs, each with whether it is a tensor: torch.export has no guard for
    that.
    """

    def __init__(
        self,
        guards: nn.Module,
        names: tuple[str, ...],
        constants: Sequence[tuple[str, Any]],
        inputs: Sequence[tuple[str, bool]],
    ) -> None:
        self._guards = guards
        self._names = names
        self._constants = constants
        self._inputs = tuple(inputs)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        values = list(args) + [kwargs[name] for name in self._names[len(args) :] if name in kwargs]
        if len(values) != len(self._names):
            return  # the call itself reports the missing argument
        for (name, wanted), (_, given) in zip(self._constants, baked_constants(values), strict=False):
            if given != wanted:
                raise CaptureError(f"{name} is {given}; the program was captured with {wanted}: capture it again")
        leaves = pytree.tree_leaves(values)
        for leaf, (name, tensor) in zip(leaves, self._inputs, strict=False):
            if isinstance(leaf, Tensor) != tensor:
                now, then = type(leaf).__name__, "a tensor" if tensor else "no tensor (None, or a Python value)"
                raise CaptureError(f"{name} is a {now}, and was {then} in the capture: capture again with it")
        try:
            self._guards(*leaves)
        except (AssertionError, RuntimeError) as error:
            raise CaptureError(
                f"{error}. The program was captured for other inputs: capture again with these, or with dynamic_shapes."
            ) from error
