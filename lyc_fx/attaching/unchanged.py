"""Whether modules and tensors are still where and what they were, which is quicker to see than to compute from them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from lyc_fx.attaching.layer import Layer
from lyc_fx.errors import Unsupported

Table = dict[str, Any]
"""The parameters, buffers or submodules that a module holds, by their names there"""
Place = tuple[str, Table, str]
"""A name in the model, the table of the module that holds it, and the name there"""


@final
@dataclass(frozen=True, eq=False)
class Standing:
    """Objects in their places."""

    names: Sequence[str]
    tables: Sequence[Table]
    leaves: Sequence[str]
    objects: Sequence[Any]

    @classmethod
    def of(cls, places: Iterable[Place]) -> Self:
        """As they are now."""
        found = list(places)
        names, tables, leaves = [n for n, _, _ in found], [t for _, t, _ in found], [each for _, _, each in found]
        return cls(names, tables, leaves, [table[leaf] for _, table, leaf in found])

    def current(self) -> list[Any]:
        """What is in the places now; None for nothing."""
        return list(map(dict.get, self.tables, self.leaves))

    def replaced(self) -> str | None:
        """The name of the first place that holds another object."""
        current = self.current()
        if all(map(is_, current, self.objects)):  # the quickest way, for thousands of tensors
            return None
        return next(n for n, now, was in zip(self.names, current, self.objects, strict=True) if now is not was)


@final
@dataclass(frozen=True, eq=False)
class Unchanged:
    """Of a model with adapted layers, when values for these layers were computed."""

    modules: Standing
    """The layers and all that they are in"""
    banks: Standing
    """The tensors beside the layers"""
    own: Standing
    """A parameter of each layer, which may be replaced"""
    forms: Sequence[tuple[torch.dtype, torch.device]]
    """Of these parameters"""
    weights: Standing
    """The tensors from which values were computed"""
    versions: Sequence[tuple[int, int]]
    """Of these tensors, with their address"""

    @classmethod
    def of(cls, model: nn.Module, layers: Mapping[str, Layer]) -> Self:
        """As all is now. Raises Unsupported for weights of which changes cannot be seen."""
        modules = {(id(table), leaf): (name, table, leaf) for path in layers for name, table, leaf in _on(path, model)}
        banks = [(path, table, leaf) for path, layer in layers.items() for table, leaf in layer.bank.places]
        own = Standing.of(
            (path, layer.module._parameters, next(n for n, p in layer.module._parameters.items() if p is not None))
            for path, layer in layers.items()
            if layer.program is not None
        )
        weights = Standing.of(_weights(model, layers))
        for name, weight in zip(weights.names, weights.objects, strict=True):
            if weight.is_inference():
                raise Unsupported(f"{name} was made in inference mode, where torch does not count changes: use set()")
        return cls(
            Standing.of(modules.values()),
            Standing.of(banks),
            own,
            [(tensor.dtype, tensor.device) for tensor in own.objects],
            weights,
            list(map(_version, weights.objects)),
        )

    def change(self) -> str | None:
        """What has changed since, in words."""
        if (name := self.modules.replaced()) is not None:
            return f"{name} is another module now"
        if (name := self.banks.replaced()) is not None:
            return f"{name} has been moved"
        if [(tensor.dtype, tensor.device) for tensor in self.own.current()] != self.forms:
            return "the model has another dtype or is on another device now"
        if (name := self.weights.replaced()) is not None:
            return f"{name} is another tensor now"
        versions = list(map(_version, self.weights.objects))
        if versions == self.versions:
            return None
        names = zip(self.weights.names, versions, self.versions, strict=True)
        return f"{next(name for name, now, was in names if now != was)} has other values now"


def _on(path: str, model: nn.Module) -> Iterable[Place]:
    """The places of all modules on a path."""
    module, names = model, path.split(".") if path else []
    for count, leaf in enumerate(names, 1):
        yield ".".join(names[:count]), module._modules, leaf
        module = module.get_submodule(leaf)


def _weights(model: nn.Module, layers: Mapping[str, Layer]) -> Iterable[Place]:
    """The weights from which anything beside the layers is computed."""
    for path, layer in layers.items():
        for read in layer.computed_from:
            name = f"{path}.{read}" if path else read
            owner, _, leaf = name.rpartition(".")
            module: Any = model.get_submodule(owner)
            yield name, module._parameters if leaf in module._parameters else module._buffers, leaf


def _version(tensor: Tensor) -> tuple[int, int]:
    # What a subclass (a quantized weight) holds has addresses of its own.
    return tensor._version, tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else 0
