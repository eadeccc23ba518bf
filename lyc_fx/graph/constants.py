"""What of a program depends on stored tensors alone, and its values."""

import operator
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.program import BANK
from lyc_fx.graph.rewrite import EMITTED
from lyc_fx.numerics.rounding import nearest


def constants(gm: GraphModule) -> set[Node]:
    """The nodes whose value no input and no random number reaches, and that nothing overwrites."""
    written = {a for n in gm.graph.nodes if _writes(n) for a in n.all_input_nodes}
    found: set[Node] = set()
    for node in gm.graph.nodes:
        stored = node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)
        computed = node.op == "call_function" and is_pure(node) and found.issuperset(node.all_input_nodes)
        if (stored or computed) and node not in written:
            found.add(node)
    return found


def adapted_roots(gm: GraphModule) -> list[Node]:
    """The results of constant formulas that splice or lower inserted, and that depend on an adapter.

    Constants of the model's own, such as a transposed weight, are none: they read the merged weight.
    """
    constant = constants(gm)
    return [n for n in gm.graph.nodes if n in constant and _leaves_formula(n, constant) and any(map(in_bank, cone(n)))]


def cone(*roots: Node, within: Callable[[Node], bool] = lambda node: True) -> list[Node]:
    """All that nodes are computed from, themselves included, inputs before users; as far as they are `within`."""
    order: dict[Node, None] = {}
    pending = [(root, False) for root in reversed(roots)]
    while pending:
        node, ready = pending.pop()
        if ready:
            order[node] = None
        elif node not in order:
            pending.append((node, True))
            pending += [(source, False) for source in node.all_input_nodes if within(source)]
    return list(order)


def in_bank(node: Node) -> bool:
    """Whether a node reads a factor or a strength."""
    return node.op == "get_attr" and str(node.target).startswith(f"{BANK}.")


def evaluated(read: Callable[[str], Tensor], roots: Iterable[Node]) -> Iterator[tuple[Node, Tensor]]:
    """Yield the values of constant nodes, each as soon as it is known; `read` finds a stored tensor by its name.

    They are computed by the operators that the graph holds; casts that splice has inserted round to the nearest. A
    value is released after its last use. Raises InvalidGraph for tensors without values.
    """
    wanted = dict.fromkeys(roots)
    order = cone(*wanted)
    last = {source: node for node in order for source in node.all_input_nodes}
    values: dict[Node, Any] = {}
    for node in order:
        values[node] = _stored(read, node) if node.op == "get_attr" else _called(node, values)
        if node in wanted:
            yield node, values[node]
        for source in {*node.all_input_nodes, node}:
            if last.get(source, node) is node:
                del values[source]


def is_pure(node: Node) -> bool:
    """Whether a call writes nothing, and draws no random numbers."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def _stored(read: Callable[[str], Tensor], node: Node) -> Tensor:
    # Detached, because matmul chooses another order of sums for operands that require grad.
    tensor = read(str(node.target)).detach()
    if tensor.is_meta or isinstance(tensor, FakeTensor):
        raise InvalidGraph(f"{node.target} has no values yet: load weights, gm.load_state_dict(…, assign=True)")
    return tensor


@torch.no_grad()  # here, because a generator would leave it to whoever reads it, and past an error
def _called(node: Node, values: dict[Node, Any]) -> Any:
    arguments, keywords = map_arg((node.args, node.kwargs), lambda n: values[n])
    rounds = node.target is torch.ops.aten.to.dtype and node.meta.get(EMITTED)
    call: Any = nearest if rounds else node.target
    return call(*arguments, **keywords)


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _leaves_formula(node: Node, constant: set[Node]) -> bool:
    inserted = bool(node.meta.get(EMITTED)) and node.op == "call_function"
    return inserted and any(not u.meta.get(EMITTED) or u not in constant for u in node.users)
