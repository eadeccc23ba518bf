"""Which weights a model stores as `(in, out)`: those of Conv1D, by which transformers' GPT-2 and others are built, and
the bare projections of CLIP.

Nothing else tells for a square weight. Conv1D is known by its class or a base of it, also where a wrapper has made
a class of its own (FSDP, parametrizations); in a graph, which has no such module any more, by the module that each node
was traced from.
"""

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Graph

from lyc_fx.naming import projections

_NAME = "Conv1D"


def is_conv1d(kind: Any) -> bool:
    """Whether a class, or the class of this qualified name, is Conv1D or derived from one.

    A class that cannot be looked up (of another process, or made inside a function) goes by the end of its name.
    """
    if isinstance(kind, type):
        return any(base.__name__ == _NAME for base in kind.__mro__)
    module, _, name = str(kind).rpartition(".")
    known = getattr(sys.modules.get(module), name, None)
    return is_conv1d(known) if isinstance(known, type) else name.endswith(_NAME)


def stored_in_out(model: nn.Module) -> frozenset[str]:
    """The names of the weights that are stored `(in, out)`, by every name that their module has."""
    return frozenset(_named(model))


def _named(model: nn.Module) -> Iterator[str]:
    named = dict(model.named_parameters(remove_duplicate=False))
    yield from (name for name in projections(named) if named[name].dim() == 2)
    for path, module in model.named_modules(remove_duplicate=False):
        if is_conv1d(type(module)):
            yield f"{path}.weight" if path else "weight"
        graph = getattr(module, "graph", None)
        if isinstance(graph, Graph):
            yield from (_placed(model, path, inner) for inner in _traced(graph))


def _traced(graph: Graph) -> set[str]:
    """The paths of the Conv1D modules that nodes were traced from."""
    stacks = (list((node.meta.get("nn_module_stack") or {}).values()) for node in graph.nodes)
    return {stack[-1][0] for stack in stacks if stack and is_conv1d(stack[-1][1])}


def _placed(model: nn.Module, prefix: str, path: str) -> str:
    """Of a graph inside a model: paths count from the module that was traced, or from the whole (unflattened)."""
    names = [".".join(filter(None, (*above, path, "weight"))) for above in ((prefix,), ())]
    known = dict(model.named_parameters(remove_duplicate=False))
    return next((name for name in names if name in known), names[0])
