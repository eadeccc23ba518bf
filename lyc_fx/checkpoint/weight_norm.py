"""Weights under weight norm: `W = g · v / ‖v‖`, stored as a direction `v` and a magnitude `g`.

torch stores them as `X.weight_v` and `X.weight_g` (`torch.nn.utils.weight_norm`), or as
`X.parametrizations.weight.original1` and `original0` (`torch.nn.utils.parametrizations.weight_norm`). `g` has the shape
of `v`, with size 1 in the dimensions over which the norm is taken. A merged weight W' is stored as `v = W'` and
`g = ‖W'‖`, as torch does when such a weight is assigned.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lyc_fx.binding.fitting import Weight, WeightNorm
from lyc_fx.errors import BadAdapter
from lyc_fx.graph.layers import weight_norm_parts

_DIRECTION = re.compile(r"((?:.*\.)?)(?:(?P<leaf>weight[^.]*)_v|parametrizations\.(?P<inner>[^.]+)\.original1)")


def with_weight_norm(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """Return the weights, and those that weight norm computes from two of them, under the module's name for these."""
    found = dict(weights)
    for direction, weight in weights.items():
        match = _DIRECTION.fullmatch(direction)
        if match is None:
            continue
        owner, leaf = match[1], match["leaf"] or match["inner"]
        magnitude = f"{owner}{leaf}_g" if match["leaf"] else f"{owner}parametrizations.{leaf}.original0"
        dim = _dim(weights.get(magnitude), weight)
        if dim is not None and f"{owner}{leaf}" not in weights:
            found[f"{owner}{leaf}"] = replace(weight, weight_norm=WeightNorm(direction, magnitude, dim))
    return found


def refuse_double_targets(weights: Mapping[str, Weight], targets: Mapping[str, object]) -> None:
    """Raise BadAdapter if adapters target a weight under weight norm and also its direction or magnitude."""
    for name in targets:
        weight_norm = weights[name].weight_norm
        for part in (weight_norm.direction, weight_norm.magnitude) if weight_norm is not None else ():
            if part in targets:
                raise BadAdapter(f"{name} is computed from {part}, and there are adapters of both: leave out one")


def compute_weight(direction: Tensor, magnitude: Tensor, weight_norm: WeightNorm) -> Tensor:
    """Compute the weight from direction and magnitude, with the operator that torch's modules use."""
    weight: Tensor = torch._weight_norm(direction, magnitude, weight_norm.dim)
    return weight


def split_weight(weight: Tensor, weight_norm: WeightNorm, part: str) -> Tensor:
    """Return what is stored for a merged weight under the name `part`: its direction or its magnitude."""
    wide = weight.float() if weight.dtype.itemsize == 1 else weight
    direction, magnitude = weight_norm_parts(wide, weight_norm.dim)
    return (direction if part == weight_norm.direction else magnitude).to(weight.dtype)


def _dim(magnitude: Weight | None, direction: Weight) -> int | None:
    """Return the one dimension over which the norm is not taken, or -1 for a norm over all dimensions.

    None if the two tensors are not a pair of direction and magnitude.
    """
    wide = direction.dtype.is_floating_point and direction.dtype.itemsize > 1
    if magnitude is None or magnitude.dtype != direction.dtype or not wide or not direction.shape:
        return None
    if not magnitude.shape:
        return -1
    for dim, size in enumerate(direction.shape):
        if magnitude.shape == tuple(size if d == dim else 1 for d in range(len(direction.shape))):
            return dim
    return None
