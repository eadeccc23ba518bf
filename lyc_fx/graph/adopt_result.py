"""Taking the result of a pass into the program, so that any `PassBase` of torch may run, not only those of lyc-fx."""

from typing import Any

from torch._ops import OpOverload
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassResult

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.program import facts, fake_mode, remember, tensors
from lyc_fx.graph.propagation import propagate
from lyc_fx.graph.show import around
from lyc_fx.graph.steps import Step


def take(gm: GraphModule, result: PassResult | None, name: str, steps: int) -> None:
    """Bring the result of the pass `name` into the program `gm`.

    A pass may return another module or None, may leave new nodes without fake values, and need not record a step:
    graph, tensors, fake values and history are completed here. `steps` is how many steps the history had before.
    Raises InvalidGraph if the operator of a new node refuses its arguments.
    """
    if result is not None and result.graph_module is not gm:
        _adopt(gm, result.graph_module)
    _complete(gm, name)
    if len(facts(gm).steps) == steps:
        remember(gm, steps=(*facts(gm).steps, Step(name, int(result is not None and bool(result.modified)))))


def _adopt(gm: GraphModule, made: GraphModule) -> None:
    """Take another module's graph and tensors; keep input checks, state-dict keys and what lyc-fx records."""
    own = tensors(gm)
    for name, tensor in tensors(made).items():
        if own.get(name) is not tensor:
            set_tensor(gm, name, tensor)
    codegen = gm.graph._codegen
    gm.graph = made.graph
    gm.graph._codegen = codegen


def _complete(gm: GraphModule, name: str) -> None:
    """Compute the missing fake values of operator calls."""
    known: Any = {node for node in gm.graph.nodes if "val" in node.meta}
    for node in gm.graph.nodes:
        if node in known or not isinstance(node.target, OpOverload) or not known.issuperset(node.all_input_nodes):
            continue
        try:
            propagate(node, fake_mode(gm))
        except Exception as error:  # whatever an operator's shape rule raises is a fault of the pass
            raise InvalidGraph(
                f"after pass {name}, at {node.name}: {node.target} refuses its arguments: {error}\n{around(gm, node)}"
            ) from error
        known.add(node)
