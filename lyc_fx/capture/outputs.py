"""Objects that a model takes or returns, such as caches and dataclasses, made known to torch's pytrees.

Export flattens inputs and outputs to tensors, and refuses classes that nobody registered. Libraries return
such objects by default (`DynamicCache`, `EncoderDecoderCache`), so they are registered as they are met.
"""

import copy
from collections.abc import Iterable
from enum import Enum
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def register(value: Any, *, inputs: bool = False) -> None:
    """Register the class of every object in `value` that holds tensors and that pytrees take for a leaf.

    Of `inputs` also those that hold none yet, such as a new cache, which export would refuse.
    """
    for leaf in pytree.tree_leaves(value):
        if isinstance(leaf, (Tensor, type, Enum)) or not hasattr(leaf, "__dict__") or callable(leaf):
            continue
        register(list(vars(leaf).values()))
        if inputs or any(isinstance(inner, Tensor) for inner in pytree.tree_leaves(list(vars(leaf).values()))):
            _register(type(leaf))


def example(inputs: Any) -> Any:
    """A copy of inputs that a trace may change: models write to the caches that they are given."""
    views = {id(leaf): leaf.detach() for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)}
    return pytree.tree_map_only(Tensor, torch.clone, copy.deepcopy(inputs, views))


def _register(cls: type) -> None:
    if cls in pytree.SUPPORTED_NODES:
        return
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
    """What an object holds besides tensors. Two are equal if they have the same tensor attributes."""

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
    dynamic = {n: v for n, v in attributes.items() if any(isinstance(i, Tensor) for i in pytree.tree_leaves(v))}
    return dynamic, {n: v for n, v in attributes.items() if n not in dynamic}


def _flatten(value: Any) -> tuple[list[Any], _Context]:
    dynamic, rest = _split(value)
    return list(dynamic.values()), _Context(tuple(dynamic), rest)


def _unflatten(cls: type[Any], values: Iterable[Any], context: _Context) -> Any:
    made = object.__new__(cls)
    made.__dict__.update(copy.deepcopy(context.rest))  # a model may write to what it is given
    made.__dict__.update(zip(context.names, values, strict=True))
    return made
