"""The model that adapters are for: names and shapes of its parameters, without their values."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from lyc_fx.errors import BadFile
from lyc_fx.fitting import Weight
from lyc_fx.formats.container import opened
from lyc_fx.orientation import oriented

Shapes = Mapping[str, tuple[int, ...]]
Like = nn.Module | str | os.PathLike[str] | Shapes
"""A model, a file or folder of its weights, or the shapes of its parameters by name"""


def shapes_of(model: Like) -> dict[str, tuple[int, ...]]:
    """Logical shapes `(out, in, *kernel)` by name: of a model, a safetensors file, or a folder of them.

    In a file, a weight is taken to be stored `(in, out)` where its bias shows it (`lyc_fx.orientation`).
    A folder may be one model's (shards), or a pipeline's: then its components' names stand before those of their
    parameters. Only headers are read. Raises BadFile.
    """
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, nn.Module):
        return {name: _logical(model, name, tuple(value.shape)) for name, value in model.state_dict().items()}
    path = Path(model)
    if not path.is_dir():
        return _in_file(path)
    own = sorted(path.glob("*.safetensors"))
    if own:
        return {name: shape for file in own for name, shape in _in_file(file).items()}
    found = {
        f"{file.parent.name}.{name}": shape
        for file in sorted(path.glob("*/*.safetensors"))
        for name, shape in _in_file(file).items()
    }
    if not found:
        raise BadFile(f"{path}: no .safetensors file is in this folder, or in one below it")
    return found


def _in_file(path: Path) -> dict[str, tuple[int, ...]]:
    with opened(path) as source:
        stored = {name: tuple(source.get_slice(name).get_shape()) for name in source.keys()}
    weights = oriented({name: Weight(shape, torch.float32) for name, shape in stored.items()}, ())
    return {name: weight.logical for name, weight in weights.items()}


def _logical(model: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    owner, _, leaf = name.rpartition(".")
    turned = leaf == "weight" and type(model.get_submodule(owner)).__name__ == "Conv1D"
    return shape[::-1] if turned else shape
