"""One adapter for every layer of a model, and what is compared between the roads."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from transformers.pytorch_utils import Conv1D

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import random_adapter
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.graph.capture.outputs import register

_FAMILIES = (
    (LoCon, frozenset({"up", "down"})),
    (LoHa, frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})),
    (LoKr, frozenset({"w1", "w2_a", "w2_b"})),
    (LoKr, frozenset({"w1", "w2"})),
)
_MAGNITUDE = 0.3


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every Linear and convolution of a model by its path, once."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
    return {path: module for path, module in model.named_modules() if isinstance(module, kinds)}


def adapters_for(weights: dict[str, tuple[int, ...]], dtype: torch.dtype) -> AdapterSet:
    """An adapter for each weight, given its path and its shape `(out, in, *kernel)`; the families take turns."""
    generator = torch.Generator().manual_seed(0)
    entries = []
    for index, (path, shape) in enumerate(weights.items()):
        family, layout = _FAMILIES[index % len(_FAMILIES)]
        made = random_adapter(family, shape, layout=layout, rank=3, alpha=2.0, dtype=dtype, generator=generator)
        small = made.with_factors({name: factor * _MAGNITUDE for name, factor in made.factors().items()})
        name = f"lycoris_{path.replace('.', '_')}"
        entries.append(Entry(name, "weight", small, tuple(f"{name}.{field}" for field in small.factors())))
    return AdapterSet(tuple(entries), source="zoo")


def shape_of(layer: nn.Module) -> tuple[int, ...]:
    """`(out, in/groups, *kernel)`: transformers' Conv1D stores it the other way round."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return tuple(weight.shape)[::-1] if isinstance(layer, Conv1D) else tuple(weight.shape)


def called(model: nn.Module, inputs: dict[str, Any]) -> Any:
    """What a model returns, without gradients."""
    with torch.no_grad():
        return model(**inputs)


def tensors(output: Any) -> list[Tensor]:
    """The tensors of an output, those in caches and dataclasses included."""
    register(output)
    return [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]


def pairs(left: Any, right: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The tensors of two outputs side by side; the outputs are of one structure."""
    register((left, right))
    assert pytree.tree_structure(left) == pytree.tree_structure(right)
    return zip(tensors(left), tensors(right), strict=True)
