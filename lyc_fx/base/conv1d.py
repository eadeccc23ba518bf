"""Finding the weights that a model stores as `(in, out)`: those of Conv1D, of which transformers' GPT-2 and others are
built, and the bare projections of CLIP.

The shape does not show it for a square weight. Conv1D is recognized by the name of its class or a base class, also if a
wrapper has derived another class from it (FSDP, parametrizations). A graph no longer has such modules; there it is
recognized by the module that each node was traced from.
"""

import sys
from collections.abc import Iterator
from typing import Any

from torch import nn
from torch.fx import Graph
from torch.nn.modules.conv import _ConvNd as _Convolution

from lyc_fx.naming import projections

_NAME = "Conv1D"


def is_conv1d(kind: Any) -> bool:
    """Return whether a class, or the class with this qualified name, is Conv1D or derived from it.

    A class derived from torch's convolutions is not, whatever its name. A class that cannot be looked up (of another
    process, or defined inside a function) is judged by the end of its name.
    """
    if isinstance(kind, type):
        return any(base.__name__ == _NAME for base in kind.__mro__) and not issubclass(kind, _Convolution)
    module, _, name = str(kind).rpartition(".")
    known = getattr(sys.modules.get(module), name, None)
    return is_conv1d(known) if isinstance(known, type) else name.endswith(_NAME)


def stored_in_out(model: nn.Module) -> frozenset[str]:
    """Return the names of the weights that are stored as `(in, out)`, including all aliases of their modules."""
    kernels = {name for name, weight in model.named_parameters(remove_duplicate=False) if weight.dim() > 2}
    return frozenset(_named(model)) - kernels


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
    """Return the paths of the Conv1D modules that nodes of a graph were traced from."""
    stacks = (list((node.meta.get("nn_module_stack") or {}).values()) for node in graph.nodes)
    return {stack[-1][0] for stack in stacks if stack and is_conv1d(stack[-1][1])}


def _placed(model: nn.Module, prefix: str, path: str) -> str:
    """Return the weight's name in the model for a path in a graph module at `prefix`.

    The path may be relative to that module, or to the whole model (as in unflattened programs).
    """
    names = [".".join(filter(None, (*above, path, "weight"))) for above in ((prefix,), ())]
    known = dict(model.named_parameters(remove_duplicate=False))
    return next((name for name in names if name in known), names[0])
