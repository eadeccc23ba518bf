"""`.safetensors`: the weights of a folded program, under the base model's keys."""

import os
import warnings
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor
from torch.fx import GraphModule

from lyc_fx.errors import InvalidGraph, Unsupported
from lyc_fx.graph.program import BANK, facts
from lyc_fx.storage.files import STORED, replacing, write_safetensors


@final
class Untied(UserWarning):
    """A file holds two different values for a tensor that is tied in the model's class."""


Path_ = str | os.PathLike[str]


def write(program: GraphModule, path: Path_, metadata: Mapping[str, str]) -> None:
    if hasattr(program, BANK):
        raise InvalidGraph(f"{path}: the program still carries adapters: fold it first, or save it as .pt2")
    state: dict[str, Tensor] = program.state_dict()
    refuse_empty(path, state)
    odd = [f"{name} is {tensor.dtype}" for name, tensor in state.items() if tensor.dtype not in STORED.values()]
    if odd:
        raise Unsupported(f"{path}: {odd[0]}, which a safetensors file cannot hold")
    _warn_of_untied(program, path, state)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
    with replacing(path) as part, part.open("wb") as file:
        write_safetensors(file, layout, state.items(), metadata)


def _warn_of_untied(program: GraphModule, path: Path_, state: Mapping[str, Tensor]) -> None:
    for names in facts(program).ties if isinstance(program, GraphModule) else ():
        first, *others = [state[name] for name in names if name in state]
        if any(other is not first and not torch.equal(first, other) for other in others):
            warnings.warn(
                f"{path}: {' and '.join(names)} were one tensor in the model and differ now: a class that ties them "
                "will keep only one of the two when it loads this file. Untie it before loading (transformers: "
                "config.tie_word_embeddings = False)",
                Untied,
                stacklevel=4,
            )


def refuse_empty(path: Path_, tensors: Mapping[str, Tensor]) -> None:
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise InvalidGraph(f"{path}: {empty[0]} has no values yet: load weights, by gm.load_state_dict(…, assign=True)")
