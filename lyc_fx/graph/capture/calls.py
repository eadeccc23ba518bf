"""Binding the arguments of a captured program's call as the model's `forward` binds them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import nn

from lyc_fx.errors import CaptureError

_PLAIN = (type(None), bool, int, float, str)
_MISSING = object()


@final
class CallBinder:
    """A forward pre-hook that gives each input of a program the argument that the model's `forward` takes for it.

    An argument may be given by position or by name. One that was not in the example may be given if its value is the
    default, which is part of the program. One that was in the example may be left out if it has a default.
    """

    def __init__(self, parameters: Sequence[inspect.Parameter], inputs: Sequence[str]) -> None:
        """`parameters` are the named parameters of `forward`, `inputs` the names of the example's inputs, in order."""
        self._positional = tuple(p.name for p in parameters if p.kind is not p.KEYWORD_ONLY)
        self._defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        self._required = tuple(p.name for p in parameters if p.default is p.empty)
        self._inputs = tuple(inputs)

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        given = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional) or any(name in given for name in kwargs):
            return None  # the call itself raises an error
        given.update(kwargs)
        for name, value in given.items():
            if name not in self._inputs:
                self._refuse_other(name, value)
        values = [given[n] if n in given else self._defaults.get(n, _MISSING) for n in self._inputs]
        for name, value in zip(self._inputs, values, strict=True):
            if value is _MISSING and name in self._required:
                return None
            if value is _MISSING:
                raise CaptureError(f"{name} was an input of the capture: pass it, or capture again without it")
        return tuple(values), {}

    def _refuse_other(self, name: str, value: Any) -> None:
        """Raise CaptureError for an argument that the program does not take, unless it is the default."""
        if name not in self._defaults:
            known = ", ".join(self._inputs)
            raise CaptureError(f"{name} was not an input of the capture ({known}): capture again with it")
        default = self._defaults[name]
        if not (value is default or (type(value) is type(default) and type(value) in _PLAIN and value == default)):
            raise CaptureError(
                f"{name} was left out of the capture, so that its default, {default!r}, is part of the program: "
                "capture again with it"
            )


def call_binder(forward: Callable[..., Any], inputs: Sequence[str]) -> CallBinder | None:
    """Make the CallBinder for a model's `forward`; None if the program's inputs are not its parameters (`*args`)."""
    parameters = inspect.signature(forward).parameters.values()
    kinds = {p.kind for p in parameters}
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
    known = {p.name for p in named}
    if inspect.Parameter.VAR_POSITIONAL in kinds or not (known.issuperset(inputs) or len(named) < len(parameters)):
        return None
    return CallBinder(named, inputs)
