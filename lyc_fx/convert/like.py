"""The model that adapters are converted for: names and shapes of its parameters, without their values."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter, BadFile
from lyc_fx.formats.container import opened
from lyc_fx.naming import PREFIXES, Target

_SHOWN = 5
_FLAT = {Target.lycoris, Target.nhwc, Target.kohya, Target.comfyui}
"""Conventions that take the names of LyCORIS and kohya as they are"""


def shapes_of(model: nn.Module | str | os.PathLike[str]) -> dict[str, tuple[int, ...]]:
    """Logical shapes `(out, in, *kernel)` by name: of a model, a safetensors file, or a folder of them.

    A folder may be one model's (shards), or a pipeline's: then its components' names stand before those of their
    parameters. Only headers are read. Raises BadFile.
    """
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
        return {name: tuple(source.get_slice(name).get_shape()) for name in source.keys()}


def _logical(model: nn.Module, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    owner, _, leaf = name.rpartition(".")
    turned = leaf == "weight" and type(model.get_submodule(owner)).__name__ == "Conv1D"
    return shape[::-1] if turned else shape


def own_shapes(adapters: AdapterSet, target: Target) -> Mapping[str, tuple[int, ...]] | None:
    """The file's own modules as if they were the model's; None where the target keeps their names as they are.

    Raises BadAdapter where the model's names cannot be read out of them.
    """
    flat = [entry.module for entry in adapters.entries if "." not in entry.module]
    shapes = {f"{e.module}.{e.leaf}": e.adapter.weight_shape() for e in adapters.entries}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if not flat and len(known) == len(shapes):
        return known
    kohya = [m for m in flat if any(m.startswith(f"{prefix}_") for prefix in PREFIXES if prefix != "lycoris")]
    if len(flat) == len(adapters.entries) and target in _FLAT and (target is not Target.kohya or kohya == flat):
        return None
    example = ", ".join([*flat, *(set(shapes) - set(known))][:_SHOWN])
    raise BadAdapter(
        f"{adapters.source}: {example}: the model's own names and shapes cannot be read out of these; name the model "
        "that they are for, or a checkpoint of it: like=… (command line: --like FILE)"
    )
