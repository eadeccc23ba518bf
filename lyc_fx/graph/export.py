"""Saving a folded program, in a format that the file's suffix selects."""

import json
import os
import warnings
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lyc_fx.errors import InvalidGraph, Unsupported, WrongArgument
from lyc_fx.graph.exported import to_exported_program
from lyc_fx.graph.program import BANK, facts, get_tensor, weights
from lyc_fx.storage.files import STORED, metadata_of, path_of, replacing, write_safetensors


@final
class Untied(UserWarning):
    """A file holds two different values for a tensor that is tied in the model's class."""


Path_ = str | os.PathLike[str]


def export(program: GraphModule, path: Path_, *, metadata: Mapping[str, str] | None = None) -> None:
    """Save a program. `.safetensors` holds its weights under the base model's keys; `.pt2` holds a whole
    `torch.export` program, with the sizes that were dynamic at capture and their ranges (`torch.export.load` reads it).

    `metadata`, a mapping of texts, goes into the safetensors header, or into the extra file `metadata.json` of a .pt2.
    The file appears under its name only when it is complete.

    Raises Unsupported for another suffix or dtype, and for a program that torch cannot store; InvalidGraph if adapters
    are not folded yet (.safetensors), or weights have no values; BadFile if the file cannot be written. Warns with
    Untied if a .safetensors file holds two different values for what was one tensor in the model.
    """
    if not isinstance(program, nn.Module):
        raise WrongArgument(f"a captured program is expected first, not {type(program).__name__}")
    said = metadata_of(metadata)
    suffix = path_of(path, "the output").suffix
    if suffix == ".safetensors":
        _weights(program, path, {"format": "pt", **said})
    elif suffix == ".pt2":
        if not isinstance(program, GraphModule):
            raise InvalidGraph(f"{path}: .pt2 takes a captured program, not {type(program).__name__}")
        _refuse_empty(path, {str(node.target): get_tensor(program, str(node.target)) for node in weights(program)})
        extra = {"metadata.json": json.dumps(said)} if said else None
        with replacing(path) as part, part.open("wb") as file:
            try:
                torch.export.save(to_exported_program(program), file, extra_files=extra)
            except (AssertionError, RuntimeError, TypeError, ValueError) as error:
                reason = " ".join(str(error).split())[:300]
                raise Unsupported(f"{path}: torch.export cannot store this program: {reason}") from error
    else:
        raise Unsupported(f"{path}: export writes .safetensors and .pt2, not {suffix or 'a file without suffix'}")


def _weights(program: GraphModule, path: Path_, metadata: Mapping[str, str]) -> None:
    if hasattr(program, BANK):
        raise InvalidGraph(f"{path}: the program still carries adapters: fold it first, or save it as .pt2")
    state: dict[str, Tensor] = program.state_dict()
    _refuse_empty(path, state)
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


def _refuse_empty(path: Path_, tensors: Mapping[str, Tensor]) -> None:
    empty = [name for name, tensor in tensors.items() if tensor.is_meta]
    if empty:
        raise InvalidGraph(f"{path}: {empty[0]} has no values yet: load weights, by gm.load_state_dict(…, assign=True)")
