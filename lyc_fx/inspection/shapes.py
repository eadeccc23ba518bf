"""Names and shapes of the parameters of a model, without their values."""

import os
from collections.abc import Mapping

from torch import nn

from lyc_fx.base.conv1d import stored_in_out
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.orientation import with_orientation
from lyc_fx.checkpoint.base import open_base
from lyc_fx.checkpoint.classes import other_names
from lyc_fx.checkpoint.weight_norm import with_weight_norm
from lyc_fx.naming.disk import names_on_disk

Shapes = Mapping[str, tuple[int, ...]]
Like = nn.Module | str | os.PathLike[str] | Shapes
"""A model, a file or folder of its weights, or a mapping from parameter names to shapes"""


def shapes_of(model: Like) -> dict[str, tuple[int, ...]]:
    """Return logical shapes `(out, in/groups, *kernel)` by parameter name, of a model, a file, or a folder.

    In a file, a weight counts as stored `(in, out)` if its bias shows it (`lyc_fx.binding.orientation`). A folder may
    hold one model (shards) or a pipeline, whose parameter names start with the component's name. Only the headers of
    files are read. Raises BadFile.
    """
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, nn.Module):
        weights = with_weight_norm(
            {n: Weight(tuple(value.shape), value.dtype) for n, value in model.state_dict().items()}
        )
        in_out, shapes = stored_in_out(model), {name: weight.shape for name, weight in weights.items()}
        return {name: shape[::-1] if name in in_out and len(shape) == 2 else shape for name, shape in shapes.items()}
    return {name: weight.logical for name, weight in with_orientation(open_base(model).weights(), ()).items()}


def other_names_of(model: Like) -> dict[str, str]:
    """Return further names of a model's parameters: of a module, those on disk; of a file, those in its class."""
    if isinstance(model, Mapping):
        return {}
    return names_on_disk(model) if isinstance(model, nn.Module) else other_names(open_base(model))
