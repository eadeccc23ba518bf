"""The base of a package with folded adapters: found in what was given, and compared with the package."""

import os
from collections.abc import Mapping
from math import isclose, isfinite
from typing import Any

import torch
from torch import Tensor, nn

from lyc_fx.errors import WrongArgument
from lyc_fx.exporting.known import Json
from lyc_fx.graph.places import Known
from lyc_fx.graph.program import tensors, uncompiled
from lyc_fx.merging.effect import Effect
from lyc_fx.storage.container import read_tensors

BaseWeights = nn.Module | Mapping[str, Tensor] | str | os.PathLike[str]
"""A model, a state dict, or a safetensors file"""
_CLOSE = 1e-6
"""Of two figures of the same change, of which the sums may have another order"""


def changed_weights(
    path: str, said: Json, own: Mapping[str, Tensor], base: BaseWeights, known: Known
) -> dict[str, Tensor]:
    """Copies of the base's weights that are others in the package, by the program's names.

    `said` is `Manifest.weights`. What no adapter was folded into must be the same to the bit; what was changed, by as
    much as the fold reported, which it estimates from some elements. Raises WrongArgument for another base, and for one
    that lacks a weight; BadFile for a file that cannot be read.
    """
    given, same = _given(path, base), {name: group for group in said["ties"] for name in group}
    folded = {each for names in said["changes"] for name in names.split(", ") for each in same.get(name, [name])}
    on_disk = {name: key for key, name in known.on_disk.items()}
    found = {}
    for name, mine in own.items():
        keys = [key for each in same.get(name, [name]) for key in (each, on_disk.get(each, each)) if key in given]
        if not keys and name not in folded:
            continue  # a buffer outside of the state dict
        if not keys:
            raise WrongArgument(f"{path}: base= has no {name}, into which an adapter was folded")
        theirs = given[keys[0]].detach().cpu()
        if (theirs.dtype, theirs.shape) != (mine.dtype, mine.shape):
            shapes = f"{theirs.dtype} {tuple(theirs.shape)}, in the package {mine.dtype} {tuple(mine.shape)}"
            raise WrongArgument(f"{path}: base= has another {name}: {shapes}")
        if not torch.equal(_bits(theirs), _bits(mine)):
            found[name] = theirs.clone().contiguous()
        change = said["changes"].get(name)
        if (name in found) if name not in folded else not _as_reported(theirs, mine, change):
            why = "differs from the package's" if name not in folded else "is not what the adapters were folded into"
            raise WrongArgument(f"{path}: base= has another {name}, which {why}: give the model that was captured")
    return found


def _as_reported(base: Tensor, folded: Tensor, change: float | None) -> bool:
    """Whether a fold into this base would report this change, where the manifest says it."""
    if change is None:  # of a weight that was all zeros, or of one with another name
        return True
    relative = Effect.of(base, folded).relative
    return isfinite(relative) and isclose(relative, change, rel_tol=_CLOSE)


def _bits(tensor: Tensor) -> Tensor:
    """The bytes: NaN equals itself there, and 0 differs from -0."""
    return tensor.contiguous().reshape(-1).view(torch.uint8)


def _given(path: str, base: Any) -> Mapping[str, Tensor]:
    if isinstance(base, nn.Module):
        return tensors(uncompiled(base))
    if isinstance(base, Mapping):
        return base
    if isinstance(base, (str, os.PathLike)):
        return read_tensors(base)[0]
    raise WrongArgument(f"{path}: base= is a model, a state dict or a safetensors file, not a {type(base).__name__}")
