"""Normalizing the graph that `torch.export` returns, to the form that every pass relies on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lyc_fx.graph.copies import rebuilt
from lyc_fx.graph.layers import COMPUTED
from lyc_fx.graph.program import owner

aten = torch.ops.aten
_GRAD_BLOCK = torch.ops.higher_order.wrap_with_set_grad_enabled


def inline_grad_blocks(gm: GraphModule) -> None:
    """Replace the subgraphs of `with torch.no_grad():` blocks by their nodes, and detach their results."""
    while blocks := [n for n in gm.graph.nodes if n.op == "call_function" and n.target is _GRAD_BLOCK]:
        for block in blocks:
            _inline(gm, block)


def _inline(gm: GraphModule, block: Node) -> None:
    enabled, body, *operands = block.args
    assert isinstance(body, Node)
    prefix = str(body.target)
    inner = gm.get_submodule(prefix)
    assert isinstance(inner, GraphModule)
    values: dict[Node, Any] = dict(zip(inner.graph.find_nodes(op="placeholder"), operands, strict=True))
    given = list(values)
    if not enabled and any(writes(node) for node in inner.graph.nodes):
        # Writes under no_grad are not recorded by autograd, so they go through detached views; except for inputs that
        # are used by a nested block with grad, which needs the record.
        with gm.graph.inserting_before(block):
            for name, value in values.items():
                if not any(user.target is _GRAD_BLOCK for user in name.users):
                    values[name] = _detached(gm.graph, value)
    with gm.graph.inserting_before(block):
        results = gm.graph.graph_copy(inner.graph, val_map=values)
        for old, new in values.items():
            if old.op == "get_attr" and old not in given:
                new.target = f"{prefix}.{old.target}"
        outputs = [_detached(gm.graph, node) if not enabled else node for node in _sequence(results)]
    for user in list(block.users):
        assert isinstance(user.args[1], int)
        result = outputs[user.args[1]]
        assert isinstance(result, Node)
        user.replace_all_uses_with(result, propagate_meta=False)
        gm.graph.erase_node(user)
    gm.graph.erase_node(block)
    if not body.users:
        gm.graph.erase_node(body)


def writes(node: Node) -> bool:
    """Return whether a node's operator changes one of its arguments in place."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _sequence(results: Any) -> list[Any]:
    return list(results) if isinstance(results, (tuple, list)) else [results]


def _detached(graph: Graph, node: Any) -> Any:
    value = node.meta.get("val") if isinstance(node, Node) else None
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return node
    result = graph.call_function(aten.detach.default, (node,))
    result.meta = dict(node.meta)
    return result


def name_weights_by_use(gm: GraphModule, module_aliases: dict[str, str]) -> None:
    """Make each use of a tied tensor read it by the name in the module that uses it.

    Export reads a tied tensor everywhere by its last name, but adapters are for one module. A use in a module that has
    none of the names keeps the name that export chose. Nodes that read an unused tensor are removed; the module keeps
    the tensor.
    """
    names: dict[int, list[str]] = {}
    for name, tensor in (*gm.named_parameters(remove_duplicate=False), *gm.named_buffers(remove_duplicate=False)):
        names.setdefault(id(tensor), []).append(name)
    by_name: dict[str, Node] = {}
    same = {name: group for group in names.values() for name in group}
    for node in list(gm.graph.find_nodes(op="get_attr")):
        group = same.get(str(node.target))
        if group is None:
            continue
        for user in list(node.users):
            wanted = _name(user, str(node.target), group)
            wanted = module_aliases.get(wanted, wanted)
            if wanted == node.target:
                by_name.setdefault(wanted, node)
                continue
            if wanted not in by_name:
                with gm.graph.inserting_before(node):
                    by_name[wanted] = gm.graph.get_attr(wanted)
                by_name[wanted].meta = dict(node.meta)
            user.replace_input_with(node, by_name[wanted])
        if not node.users:
            gm.graph.erase_node(node)


def _name(user: Node, given: str, group: list[str]) -> str:
    if len(group) == 1:
        return given
    while user.target in COMPUTED and user.users:
        user = next(iter(user.users))
    path, _ = owner(user)
    here = [name for name in group if _module(name) == path]
    return given if given in here or not here else here[0]


def _module(name: str) -> str:
    """Return the path of the module that a tensor belongs to: `fc`, for `fc.weight` and for its parametrizations."""
    return f".{name.rpartition('.')[0]}".partition(".parametrizations.")[0].removeprefix(".")


def finish(gm: GraphModule, source: nn.Module, meta: dict[str, Any]) -> GraphModule:
    """Make a plain GraphModule of the normalized graph, with all tensors of `source`."""
    gm.graph.lint()
    return rebuilt(source, gm.graph, meta=meta)
