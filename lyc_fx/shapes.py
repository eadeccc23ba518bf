"""The model that adapters are for: names and shapes of its parameters, without their values."""

import os
from collections.abc import Mapping

from torch import nn

from lyc_fx.conv1d import stored_in_out
from lyc_fx.fitting import Weight
from lyc_fx.folding.base import open_base
from lyc_fx.folding.classes import other_names
from lyc_fx.folding.weight_norm import with_weight_norm
from lyc_fx.naming.disk import names_on_disk
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
        weights = with_weight_norm(
            {n: Weight(tuple(value.shape), value.dtype) for n, value in model.state_dict().items()}
        )
        turned, shapes = stored_in_out(model), {name: weight.shape for name, weight in weights.items()}
        return {name: shape[::-1] if name in turned and len(shape) == 2 else shape for name, shape in shapes.items()}
    return {name: weight.logical for name, weight in oriented(open_base(model).weights(), ()).items()}


def other_names_of(model: Like) -> dict[str, str]:
    """Further names of its parameters: in a file those that its class has for them, in a module those on disk."""
    if isinstance(model, Mapping):
        return {}
    return names_on_disk(model) if isinstance(model, nn.Module) else other_names(open_base(model))
