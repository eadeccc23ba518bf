"""Staged values: buffers of a program, and the graph over its tensors that computes them."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lyc_fx.errors import BadAdapter, InvalidGraph, WrongArgument
from lyc_fx.graph.constants import cone, evaluated
from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.merged_weight import base_of
from lyc_fx.graph.program import BANK, captured, facts, get_tensor, remember, tensors, without_autocast
from lyc_fx.graph.rewrite import MERGED

STAGED = f"{BANK}.staged"
"""The submodule that holds the buffers"""


def staging_graph(roots: Mapping[str, Node]) -> Graph:
    """A graph over a program's tensors whose output maps the names of buffers to the nodes that compute them."""
    graph, copies = Graph(), dict[Node, Node]()
    for node in cone(*roots.values()):
        copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output({name: copies[root] for name, root in roots.items()})
    return graph


def staged_values(graph: Graph, read: Callable[[str], Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the staged values by the names of their buffers; `read` finds a stored tensor by its name.

    To be read without autocast. Raises BadAdapter for a merged weight that overflows.
    """
    results: Any = graph.output_node().args[0]
    names = {node: name for name, node in results.items()}
    for node, value in evaluated(read, names):
        if MERGED in node.meta:
            _refuse_overflow(node, value, read)
        yield names[node], value


def _refuse_overflow(merged: Node, value: Tensor, read: Callable[[str], Tensor]) -> None:
    """Raise BadAdapter for a merged weight that is not finite although its base is."""
    base = base_of(merged)
    if _finite(value) or base is None or base.op != "get_attr" or not _finite(read(str(base.target))):
        return
    raise BadAdapter(
        f"{base.target}: the merged weight is not finite in {value.dtype}: lower the strength, or leave the adapter out"
    )


@torch.inference_mode(False)
@torch.no_grad()
def restage(program: GraphModule) -> None:
    """Compute the staged values of a program anew, in place, after its factors or strengths have changed.

    The buffers stay what and where they are: what was compiled is not compiled again.

    Raises WrongArgument for a program that `lyc_fx.stage` has not made, InvalidGraph for weights without values, and
    BadAdapter for a merged weight that overflows: some buffers may have new values then, so restage with a lower
    strength.
    """
    graph = facts(captured(program)).staging
    if graph is None:
        raise WrongArgument("the program has no staged values: lyc_fx.stage makes one that has")
    with without_autocast():
        for name, value in staged_values(graph, partial(get_tensor, program)):
            get_tensor(program, name).copy_(value)


def _finite(tensor: Tensor) -> bool:
    wide = tensor.float() if tensor.dtype.itemsize == 1 else tensor  # torch does not ask float8
    return bool(wide.isfinite().all())


def freeze_factors(gm: GraphModule) -> None:
    """Make buffers of all factors: a program in which some are staged would train the others alone."""
    for name, tensor in tensors(gm).items():
        if name.startswith(f"{BANK}.") and isinstance(tensor, nn.Parameter):
            set_tensor(gm, name, tensor.detach(), persistent=True)


def note_staging(gm: GraphModule, graph: Graph) -> None:
    """Record how the staged values of a program are computed. Raises InvalidGraph if it has some already."""
    if facts(gm).staging is not None:
        raise InvalidGraph("the program is staged already: after a change of factors or strengths call lyc_fx.restage")
    remember(gm, staging=graph)
