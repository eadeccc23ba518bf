"""Weights under weight norm: `W = g · v / ‖v‖`, stored as a direction v and a magnitude g.

torch stores them as `X.weight_v` and `X.weight_g` (`torch.nn.utils.weight_norm`), or as
`X.parametrizations.weight.original1` and `original0` (`torch.nn.utils.parametrizations.weight_norm`); g has the shape
of v, but for sizes of 1 where the norm is taken. A merged weight W' is stored as v = W' and g = ‖W'‖, which is what
torch stores of a weight that is set.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.fitting import Normed, Weight
from lyc_fx.layers import weight_norm_parts

_DIRECTION = re.compile(r"((?:.*\.)?)(?:(?P<leaf>weight[^.]*)_v|parametrizations\.(?P<inner>[^.]+)\.original1)")


def with_normed(weights: Mapping[str, Weight]) -> dict[str, Weight]:
    """The weights, and those that are computed from a pair of them, under the names that modules have for these."""
    found = dict(weights)
    for direction, weight in weights.items():
        match = _DIRECTION.fullmatch(direction)
        if match is None:
            continue
        owner, leaf = match[1], match["leaf"] or match["inner"]
        magnitude = f"{owner}{leaf}_g" if match["leaf"] else f"{owner}parametrizations.{leaf}.original0"
        dim = _dim(weights.get(magnitude), weight)
        if dim is not None and f"{owner}{leaf}" not in weights:
            found[f"{owner}{leaf}"] = replace(weight, normed=Normed(direction, magnitude, dim))
    return found


def refuse_both(weights: Mapping[str, Weight], targets: Mapping[str, object]) -> None:
    """Raise BadAdapter where adapters change a weight and also what it is computed from."""
    for name in targets:
        normed = weights[name].normed
        for part in (normed.direction, normed.magnitude) if normed is not None else ():
            if part in targets:
                raise BadAdapter(f"{name} is computed from {part}, and there are adapters of both: leave out one")


def effective(direction: Tensor, magnitude: Tensor, normed: Normed) -> Tensor:
    """The weight that a module computes, by the operator that it computes it with."""
    weight: Tensor = torch._weight_norm(direction, magnitude, normed.dim)
    return weight


def stored(weight: Tensor, normed: Normed, part: str) -> Tensor:
    """What is stored for a merged weight as its direction, or as its magnitude."""
    wide = weight.float() if weight.dtype.itemsize == 1 else weight
    direction, magnitude = weight_norm_parts(wide, normed.dim)
    return (direction if part == normed.direction else magnitude).to(weight.dtype)


def _dim(magnitude: Weight | None, direction: Weight) -> int | None:
    """The dimension that the norm leaves, -1 for a norm over all; None where these are no such pair."""
    wide = direction.dtype.is_floating_point and direction.dtype.itemsize > 1
    if magnitude is None or magnitude.dtype != direction.dtype or not wide or not direction.shape:
        return None
    if not magnitude.shape:
        return -1
    for dim, size in enumerate(direction.shape):
        if magnitude.shape == tuple(size if d == dim else 1 for d in range(len(direction.shape))):
            return dim
    return None
