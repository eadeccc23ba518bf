"""The runtimes of exported programs: each takes the inputs by name, and gives the outputs in order."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

Runner = Callable[[Mapping[str, Any]], list[Any]]


def runner(path: Path) -> Runner:
    """The runtime for a file, by its suffix, with the program loaded."""
    return _pt2(path)


def _pt2(path: Path) -> Runner:
    """A `torch.export` program."""
    exported = torch.export.load(path)
    module, spec = exported.module(), exported.call_spec.in_spec
    assert spec is not None

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(list(inputs.values()), spec)
        with torch.no_grad():
            return pytree.tree_leaves(module(*args, **kwargs))

    return run
