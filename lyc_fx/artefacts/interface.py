"""The arguments and results of an exported program: flat tensors by name, checked before the runtime sees them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import torch
from torch import Tensor

from lyc_fx.errors import WrongArgument
from lyc_fx.exporting.interface import Value
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.graph.slots import ADAPTER, STRENGTHS

_MISSING = object()


@final
@dataclass(frozen=True)
class Interface:
    """Of one program, without the inputs for adapters and strengths."""

    path: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    bounds: Mapping[str, Sequence[int | None]]
    """The smallest and the largest of each size that may vary; None for no bound"""

    @classmethod
    def of(cls, manifest: Manifest, path: str) -> Self:
        """From what a file says."""
        added = (STRENGTHS,) if manifest.sets else ()
        slots = bool(manifest.form)
        own = (v for v in manifest.inputs if v.name not in added and not (slots and v.name.startswith(f"{ADAPTER}.")))
        return cls(path, tuple(own), manifest.outputs, manifest.bounds)

    def flat(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs by name, of arguments by position or by name. Raises WrongArgument, which says what is wrong."""
        names = list(dict.fromkeys(value.name.split(".")[0] for value in self.inputs))
        if len(args) > len(names):
            raise WrongArgument(f"{self.path}: {len(args)} arguments, and it takes {', '.join(names)}")
        given = dict(zip(names, args, strict=False))
        twice = sorted(given.keys() & kwargs.keys())
        unknown = sorted(kwargs.keys() - set(names))
        if twice or unknown:
            what = f"{twice[0]} is given twice" if twice else f"it has no argument {unknown[0]}"
            raise WrongArgument(f"{self.path}: {what}; it takes {', '.join(names)}")
        given |= kwargs
        sizes: dict[str, tuple[int, str]] = {}
        found = {}
        for value in self.inputs:
            tensor = _at(given, value.name.split("."))
            if tensor is _MISSING:
                raise WrongArgument(f"{self.path}: {value.name} is missing; it takes {', '.join(names)}")
            found[value.name] = self._checked(value, tensor, sizes)
        return found

    def _checked(self, value: Value, given: Any, sizes: dict[str, tuple[int, str]]) -> Any:
        if value.is_python:
            if given != value.value and value.value is not None:
                raise WrongArgument(f"{self.path}: {value.name} is {given!r}; the program was made for {value.value!r}")
            return given
        if not isinstance(given, Tensor):
            raise WrongArgument(f"{self.path}: {value.name} is a {type(given).__name__}, not a tensor")
        if str(given.dtype) != f"torch.{value.dtype}":
            raise WrongArgument(f"{self.path}: {value.name} is {given.dtype}, and the program takes {value.dtype}")
        shape = tuple(given.shape)
        right = len(shape) == len(value.shape) and all(
            size == wanted for size, wanted in zip(shape, value.shape, strict=True) if isinstance(wanted, int)
        )
        if not right:
            wanted = ", ".join(map(str, value.shape))
            raise WrongArgument(f"{self.path}: {value.name} is {shape}, and the program takes ({wanted})")
        for size, name in zip(shape, value.shape, strict=True):
            if isinstance(name, str):
                self._vary(value, size, name, sizes)
        return given

    def _vary(self, value: Value, size: int, name: str, sizes: dict[str, tuple[int, str]]) -> None:
        known, where = sizes.setdefault(name, (size, value.name))
        if known != size:
            raise WrongArgument(f"{self.path}: {value.name} has size {size} where {where} has {known}")
        least, greatest = self.bounds.get(name, (None, None))
        if (greatest is not None and size > greatest) or (least is not None and size < least):
            raise WrongArgument(
                f"{self.path}: {value.name} has size {size}, and {name} is at least {least or 0}"
                + (f" and at most {greatest}" if greatest is not None else "")
            )

    def results(self, flat: Sequence[Any]) -> Any:
        """The structure of the results: a tensor, or dicts and tuples."""
        if len(self.outputs) == 1 and self.outputs[0].name == "output":
            return flat[0]
        nested: dict[str, Any] = {}
        for value, result in zip(self.outputs, flat, strict=True):
            *path, leaf = value.name.split(".")
            inner = nested
            for part in path:
                inner = inner.setdefault(part, {})
            inner[leaf] = result
        return _tuples(nested)


def _at(given: Any, path: Sequence[str]) -> Any:
    """What is at a path, through dicts, lists and the fields of objects."""
    for part in path:
        if isinstance(given, Mapping):
            given = given.get(part, _MISSING)
        elif isinstance(given, (list, tuple)) and part.isdigit():
            given = given[int(part)] if int(part) < len(given) else _MISSING
        else:
            given = getattr(given, part, _MISSING)
        if given is _MISSING:
            break
    return given


def _tuples(nested: Any) -> Any:
    if isinstance(nested, torch.Tensor) or not isinstance(nested, dict):
        return nested
    inner = {name: _tuples(value) for name, value in nested.items()}
    return tuple(inner.values()) if inner and all(name.isdigit() for name in inner) else inner
