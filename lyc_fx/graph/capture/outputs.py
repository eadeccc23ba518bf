"""Registering the classes of objects that a model takes or returns, such as caches, with torch's pytrees.

Export flattens inputs and outputs to tensors, and refuses classes that are not registered. Libraries return such
objects by default (`DynamicCache`, `EncoderDecoderCache`), so their classes are registered when they are first seen.
"""

import copy
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_PLAIN = (Tensor, type, Enum, torch.SymInt, torch.SymFloat, torch.SymBool)
_REGISTERED: set[type] = set()


def register(value: Any, *, inputs: bool = False) -> None:
    """Register the class of every object in `value` that holds tensors and is a leaf to pytrees.

    With `inputs`, register objects without tensors too, such as an empty cache, which export would refuse.
    """
    for leaf in _leaves(value):
        if isinstance(leaf, _PLAIN) or not hasattr(leaf, "__dict__") or callable(leaf):
            continue
        register(list(vars(leaf).values()))
        if inputs or any(isinstance(inner, Tensor) for inner in pytree.tree_leaves(list(vars(leaf).values()))):
            _register(type(leaf))


def copy_example(inputs: Any, device: torch.device) -> Any:
    """Copy inputs, so that tracing may change them: models write to caches that they are given.

    Tensors on the meta device are on `device` in the copy.
    """
    views = {id(leaf): leaf.detach() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    copied = copy.deepcopy(inputs, views)
    return pytree.tree_map_only(
        Tensor, lambda t: torch.zeros_like(t, device=device) if t.is_meta else t.clone(), copied
    )


def baked_constants(value: Any) -> list[tuple[str, Any]]:
    """Return the Python values in registered objects, with names: export makes them constants, without guards."""
    if isinstance(value, (list, tuple)):
        return [pair for inner in value for pair in baked_constants(inner)]
    if isinstance(value, Mapping):
        return baked_constants(list(value.values()))
    if type(value) not in _REGISTERED:
        return []
    here = [(f"{type(value).__name__}.{n}", copy.deepcopy(v)) for n, v in vars(value).items() if _is_plain(v)]
    return here + baked_constants(list(vars(value).values()))


def _is_plain(value: Any) -> bool:
    return all(leaf is None or isinstance(leaf, (int, float, str)) for leaf in _leaves(value))


def _leaves(value: Any) -> list[Any]:
    """Return the leaves of a pytree, with registered objects as leaves: they may hold objects of other classes."""
    return pytree.tree_leaves(value, is_leaf=lambda inner: type(inner) in _REGISTERED)


def _register(cls: type) -> None:
    if cls in pytree.SUPPORTED_NODES:
        return
    _REGISTERED.add(cls)
    pytree.register_pytree_node(
        cls,
        _flatten,
        lambda values, context: _unflatten(cls, values, context),
        flatten_with_keys_fn=lambda value: (
            [(pytree.GetAttrKey(name), inner) for name, inner in _split(value)[0].items()],
            _flatten(value)[1],
        ),
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        to_dumpable_context=lambda context: list(context.names),
        from_dumpable_context=lambda names: _Context(tuple(names), {}),
    )


class _Context:
    """The attributes of an object without tensors. Two are equal if their objects have the same tensor attributes."""

    def __init__(self, names: tuple[str, ...], rest: dict[str, Any]) -> None:
        self.names, self.rest = names, rest

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Context) and self.names == other.names

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return f"{', '.join(self.names)}"

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Context":
        return _Context(self.names, dict(self.rest))


def _split(value: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    attributes = vars(value)
    dynamic = {n: v for n, v in attributes.items() if any(map(_varies, pytree.tree_leaves(v)))}
    return dynamic, {n: v for n, v in attributes.items() if n not in dynamic}


def _varies(leaf: Any) -> bool:
    """Return whether a leaf is a tensor, or a number computed from sizes, such as how many tokens a cache has seen."""
    return isinstance(leaf, (Tensor, torch.SymInt))


def _flatten(value: Any) -> tuple[list[Any], _Context]:
    dynamic, rest = _split(value)
    return list(dynamic.values()), _Context(tuple(dynamic), rest)


def _unflatten(cls: type[Any], values: Iterable[Any], context: _Context) -> Any:
    made = object.__new__(cls)
    made.__dict__.update(copy.deepcopy(context.rest))  # a model may change the objects that it is given
    made.__dict__.update(zip(context.names, values, strict=True))
    return made
