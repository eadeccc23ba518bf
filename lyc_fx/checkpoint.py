"""The checkpoint road: adapters folded into a safetensors file, without any model code."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lyc_fx.binding import Binding, bind
from lyc_fx.errors import Unsupported
from lyc_fx.families import Convention
from lyc_fx.files import STORED, replacing, write_safetensors
from lyc_fx.fitting import Weight
from lyc_fx.formats import load
from lyc_fx.formats.container import opened
from lyc_fx.orientation import oriented, refuse_doubtful
from lyc_fx.report import Report
from lyc_fx.stack import Adapters, Blocks, stacked

Path_ = str | os.PathLike[str]
Progress = Callable[[str, int], None]
"""Called after each tensor with its name and size in bytes"""


def fold_checkpoint(
    base: Path_,
    adapters: Adapters | Path_,
    out: Path_,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    transposed: Iterable[str] = (),
    compute: torch.dtype | None = None,
    progress: Progress = lambda name, size: None,
) -> Report:
    """Fold adapters into a safetensors checkpoint: same keys, shapes, dtypes and metadata, merged weights.

    `adapters` is a file, what `load` returned, or a list of (adapters, strength) pairs; these, the strengths,
    `convention` and `sequential` are as in `splice`. `transposed` lists fnmatch patterns of weights that are
    stored `(in, out)` (Conv1D of GPT-2), and after a `!` of those that are not; only weights of whose orientation
    the bias says nothing need one (`lyc_fx.orientation`). One tensor at a time is in memory. The output appears
    under its name only when it is whole.

    Raises BadFile, BadAdapter and Unsupported (a packed dtype, or a scaled one); then there is no output, and an
    older file of that name is as it was.
    """
    if isinstance(adapters, (str, os.PathLike)):
        adapters = load(adapters)
    stack = stacked(adapters, strength, convention=convention, sequential=sequential)
    with ExitStack() as resources:
        source = resources.enter_context(opened(base))
        names = list(source.offset_keys())
        patterns = tuple(transposed)
        weights = oriented({name: _described(source, name) for name in names}, patterns)
        binding = bind(stack, weights, strict=strict)
        refuse_doubtful(weights, filter(binding.active, binding.targets), patterns)
        inputs = [base, *(part.adapters.source for part in stack.parts)]
        target = resources.enter_context(replacing(out, inputs))
        layout = {name: (weights[name].dtype, weights[name].shape) for name in names}
        with target.open("wb") as file:
            notes: list[str] = []
            tensors = _folded(source, names, binding, weights, compute, progress, notes)
            write_safetensors(file, layout, tensors, source.metadata() or {})
    return replace(binding.report, notes=tuple(notes))


def _described(source: Any, name: str) -> Weight:
    part = source.get_slice(name)
    shape = tuple(part.get_shape())
    code = part.get_dtype()
    if code not in STORED:
        raise Unsupported(f"{name} is stored as {code}, which lyc-fx cannot copy")
    return Weight(shape, STORED[code])


def _folded(
    source: Any,
    names: Iterable[str],
    binding: Binding,
    weights: Mapping[str, Weight],
    compute: torch.dtype | None,
    progress: Progress,
    notes: list[str],
) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        tensor = source.get_tensor(name)
        if binding.active(name):
            turned = weights[name].transposed
            notes += binding.doubts(name, tensor, transposed=turned)
            tensor = binding.merged(name, tensor, transposed=turned, compute=compute)
        yield name, tensor
        progress(name, tensor.numel() * tensor.element_size())
