"""`capture(check=True)`: comparing the results of program and model on the example.

A model may take another path while it is exported (`torch.compiler.is_exporting()`), which the graph does not show.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.differing import first_differing
from lyc_fx.graph.program import tensors
from lyc_fx.graph.validation import gap, precision

_CONTAINERS = (dict, OrderedDict, list, set)
"""The containers whose elements are restored; not subclasses of these, which may forbid changes"""


def refuse_different(model: nn.Module, gm: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise CaptureError, with the size and place of the difference, unless both give the same for the example.

    Both run once, without grad, from the same random state, on copies of the inputs; buffers and attributes are
    restored. An output that depends on the random state is accepted, since the program may draw in another order.
    Raises CaptureError also for weights without values.
    """
    empty = [name for name, tensor in tensors(model).items() if tensor.is_meta]
    if empty:
        raise CaptureError(f"check=True runs the model, and {empty[0]} has no values yet: load weights, or check=False")
    run = partial(_leaves, args=args, kwargs=kwargs)
    wanted, given = run(model), run(gm)
    if len(wanted) != len(given):
        raise CaptureError(f"the captured program gives {len(given)} values where the model gives {len(wanted)}")
    tolerance = precision(gm) ** 0.5
    for number, (old, new) in enumerate(zip(wanted, given, strict=True)):
        if (apart := gap(old, new)) > tolerance and gap(old, run(model, seed=1)[number]) <= tolerance:
            inputs = pytree.tree_leaves((args, dict(kwargs)))
            module = first_differing(model, gm, run, inputs, tolerance)
            where = f"The first module that gives something else is {module}. " if module else ""
            raise CaptureError(
                f"the captured program is not the model: on the example, output {number} differs by {apart:.1e} of its "
                f"norm. {where}The model takes another path while it is exported; find it in its code "
                "(torch.compiler.is_exporting, is_compiling), or choose another implementation of that part "
                '(for transformers, attn_implementation="sdpa" or "eager"); check=False skips this check'
            )


def _leaves(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int = 0) -> list[Any]:
    """Return the flat results of a module for the example, leaving inputs, module and random state unchanged."""
    fresh_args, fresh_kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
    devices = {t.device.index or 0 for t in pytree.tree_leaves((args, dict(kwargs))) if _on_gpu(t)}
    with torch.no_grad(), torch.random.fork_rng(devices=sorted(devices)), _restored(module):
        torch.manual_seed(seed)
        found = module(*fresh_args, **fresh_kwargs)
        return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in pytree.tree_leaves(found)]


def _on_gpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_cuda


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    """Restore a model's buffers and attributes at the end, including hooks and other additions to containers."""
    attributes = [vars(module) for module in model.modules()]
    every = [c for own in attributes for c in (own, *own.values()) if type(c) in _CONTAINERS]
    containers = [(container, copy.copy(container)) for container in every]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for container, before in containers:
            container.clear()
            container.extend(before) if isinstance(container, list) else container.update(before)
        with torch.no_grad():
            for buffer, value in buffers:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
