"""Further keyword arguments of a program."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from lyc_fx.errors import InvalidGraph


def pytree_info(program: GraphModule) -> Any:
    """How the arguments and results of a program are made of its flat inputs and outputs: a `_PyTreeInfo`."""
    codegen: Any = program.graph._codegen
    return codegen.pytree_info


def add_inputs(gm: GraphModule, given: Mapping[str, Any]) -> list[Node]:
    """Give a program keyword arguments, each a fake tensor, or a dict of them by name, and return their nodes in order.

    The program's checks of inputs leave them alone. Raises InvalidGraph for a name that an argument has already.
    """
    info = pytree_info(gm)
    for name in given:
        if name in info.orig_args:
            raise InvalidGraph(f"the program has an argument {name} of its own, so that none can be added")
    placeholders = _at_the_top(gm)
    nodes = []
    after = placeholders[-1] if placeholders else None
    for name, value in given.items():
        for key, fake in value.items() if isinstance(value, Mapping) else [("", value)]:
            text = f"{name}_{key}" if key else name
            with gm.graph.inserting_after(after) if after is not None else gm.graph.inserting_before():
                after = gm.graph.placeholder("".join(c if c.isalnum() else "_" for c in text))
            after.meta["val"] = fake
            nodes.append(after)
    args, kwargs = info.in_spec.children()
    names = [*kwargs.context, *given]
    skeleton = dict(zip(names, [*(_skeleton(child) for child in kwargs.children()), *given.values()], strict=True))
    specs = [args, pytree.tree_structure(skeleton)]
    in_spec = pytree.tree_structure(tuple(_skeleton(spec) for spec in specs))
    gm.graph._codegen = _PyTreeCodeGen(_PyTreeInfo([*info.orig_args, *given], in_spec, info.out_spec))
    for key, hook in gm._forward_pre_hooks.items():
        gm._forward_pre_hooks[key] = Besides(given, hook)
    return nodes


@final
class Besides:
    """A forward pre-hook that lets another one see all arguments but some."""

    def __init__(self, names: Iterable[str], hook: Any) -> None:
        self._names, self._hook = frozenset(names), hook

    def __call__(self, module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        result = self._hook(module, args, {n: value for n, value in kwargs.items() if n not in self._names})
        if result is None:
            return None
        return result[0], {**result[1], **{n: value for n, value in kwargs.items() if n in self._names}}


def _skeleton(spec: pytree.TreeSpec) -> Any:
    return pytree.tree_unflatten([0] * spec.num_leaves, spec)


def _at_the_top(gm: GraphModule) -> list[Node]:
    """Move the inputs before all else, in their order, and return them."""
    found = list(gm.graph.find_nodes(op="placeholder"))
    for node in reversed(found):
        first = next(iter(gm.graph.nodes))
        if first is not node:
            first.prepend(node)
    return found
