"""fold: evaluate every cone that depends on constants only and on an adapter, and store it as the base weight.

The result goes back under the base weight's own name; then the cone and its factors are dropped. A model's own
constant tables are left alone. So a folded program has exactly the base's state-dict keys, shapes, dtypes and
operators. A weight that the model computes (weight norm) is stored as parameters that compute to the result.

A tied tensor is written for the uses that were adapted. Where another of its names has an unadapted use, all other
names keep the old tensor (it is untied, and the report says so); else they follow.
"""

import operator
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.layers import COMPUTED, weight_norm_parts
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.program import BANK, aliases, facts, get_tensor, remember, tensors
from lyc_fx.graph.rewrite import EMITTED, erase_unused
from lyc_fx.merging.effect import Effect
from lyc_fx.numerics.rounding import nearest

_ADVICE = "fold what lyc_fx.splice returned (lower moves adapters to the activations, where they are no constants)"


@final
@dataclass(frozen=True)
class Fold(PassBase):
    """Option: whether base weights may hold NaN and infinity."""

    allow_nonfinite: bool = False

    def call(self, gm: GraphModule) -> PassResult:
        constant = _constants(gm)
        roots = [n for n in gm.graph.nodes if n in constant and _leaves_formula(n, constant) and _adapted(n)]
        names = aliases(gm)
        bases, changes = {root: _base(root) for root in roots}, dict[str, float]()
        done_with: set[tuple[Node, ...]] = set()
        for root, base in bases.items():
            read = tuple(base.all_input_nodes) or (base,)
            if read not in done_with:  # each call of a module under weight norm computes its weight anew
                changes |= self._store(gm, root, base, names)
                done_with.add(read)
            base.meta = dict(base.meta)
            root.replace_all_uses_with(base, propagate_meta=False)
            erase_unused(gm, [root])
        left = _drop_unread(gm)
        if left:
            raise InvalidGraph(f"{len(left)} factors cannot be folded, the first is {left[0]}: {_ADVICE}")
        report = facts(gm).report
        if report is not None:
            remember(gm, report=report.measured(changes))
        return done(gm, "fold", len(roots))

    def _store(self, gm: GraphModule, root: Node, base: Node, names: dict[int, list[str]]) -> dict[str, float]:
        """Put the merged weight in the base's place; how much it changed, by the name of what was stored."""
        value = _evaluate(gm, root)
        stores = _stores(base, value)
        effect, name = Effect.of(_evaluate(gm, base), value), ", ".join(str(node.target) for node in stores)
        effect.refuse(name, value.dtype, value.numel(), allow_nonfinite=self.allow_nonfinite)
        for node, tensor in stores.items():
            _store(gm, node, tensor, names)
        return {name: effect.relative}


def _constants(gm: GraphModule) -> set[Node]:
    """The nodes whose value no input and no random number reaches, and that nothing overwrites."""
    written = {a for n in gm.graph.nodes if _writes(n) for a in n.all_input_nodes}
    found: set[Node] = set()
    for node in gm.graph.nodes:
        stored = node.op == "get_attr" and isinstance(node.meta.get("val"), Tensor)
        computed = node.op == "call_function" and _pure(node) and found.issuperset(node.all_input_nodes)
        if (stored or computed) and node not in written:
            found.add(node)
    return found


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _pure(node: Node) -> bool:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return not target._schema.is_mutable and torch.Tag.nondeterministic_seeded not in target.tags
    return target is operator.getitem


def _leaves_formula(node: Node, constant: set[Node]) -> bool:
    """Whether something that splice did not insert reads this; constants of the model's own, such as a transposed
    or sliced weight, stay as they are, and read the merged weight."""
    return bool(node.meta.get(EMITTED)) and any(not u.meta.get(EMITTED) or u not in constant for u in node.users)


def _in_bank(node: Node) -> bool:
    return node.op == "get_attr" and str(node.target).startswith(f"{BANK}.")


def _cone(root: Node) -> list[Node]:
    """All that a node is computed from, itself included, inputs before users."""
    order: dict[Node, None] = {}
    pending = [(root, False)]
    while pending:
        node, ready = pending.pop()
        if ready:
            order[node] = None
        elif node not in order:
            pending.append((node, True))
            pending += [(source, False) for source in node.all_input_nodes]
    return list(order)


def _adapted(node: Node) -> bool:
    return any(map(_in_bank, _cone(node)))


def _base(root: Node) -> Node:
    """The node that gave the weight before splice."""
    cone = _cone(root)
    computed = [n for n in cone if n.target in COMPUTED]
    read = [n for n in cone if n.op == "get_attr" and not _in_bank(n)]
    bases = computed or read
    if len(bases) != 1 or bases[0].meta["val"].shape != root.meta["val"].shape:
        raise InvalidGraph(f"{root.name} reads an adapter, but is no adapted weight: {_ADVICE}")
    return bases[0]


@torch.no_grad()
def _evaluate(gm: GraphModule, root: Node) -> Tensor:
    """The value of a cone, by the operators that the graph holds; splice's casts round to the nearest, as elsewhere."""
    values: dict[Node, Any] = {}
    for node in _cone(root):
        if node.op == "get_attr":
            # Detached, because matmul chooses another order of sums for operands that require grad.
            values[node] = get_tensor(gm, str(node.target)).detach()
            if values[node].is_meta or isinstance(values[node], FakeTensor):
                raise InvalidGraph(f"{node.target} has no values yet: load weights, gm.load_state_dict(…, assign=True)")
        else:
            arguments, keywords = map_arg((node.args, node.kwargs), lambda n: values[n])
            rounds = node.target is torch.ops.aten.to.dtype and node.meta.get(EMITTED)
            call: Any = nearest if rounds else node.target
            values[node] = call(*arguments, **keywords)
    result = values[root]
    assert isinstance(result, Tensor)
    return result


def _stores(base: Node, value: Tensor) -> dict[Node, Tensor]:
    """What to store where, so that `base` gives `value`."""
    if base.op == "get_attr":
        return {base: value}
    direction, magnitude = base.args[0], base.args[1]
    dim = base.args[2] if len(base.args) > 2 else 0
    assert isinstance(direction, Node) and isinstance(magnitude, Node) and isinstance(dim, int)
    return dict(zip((direction, magnitude), weight_norm_parts(value, dim), strict=True))


def _store(gm: GraphModule, node: Node, value: Tensor, names: dict[int, list[str]]) -> None:
    name = str(node.target)
    old = get_tensor(gm, name)
    value = value.detach().contiguous()
    new = nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    live = {str(n.target) for n in gm.graph.find_nodes(op="get_attr") if n.users}
    same = facts(gm).aliases
    tied = {name, *names.get(id(old), ()), *(alias for alias, first in same.items() if first == name)}
    others = [alias for alias in sorted(tied) if same.get(alias, alias) != name]
    kept = others if live.intersection(others) else []
    for alias in tied.difference(kept):
        set_tensor(gm, alias, new)
    report = facts(gm).report
    if kept and report is not None:
        note = f"{name} was tied to {', '.join(kept)}, which other uses read: it is untied"
        remember(gm, report=replace(report, notes=(*report.notes, note)))


def _drop_unread(gm: GraphModule) -> list[str]:
    """Remove the bank unless something reads it still; the names of what is still read."""
    stored = [name for name in tensors(gm) if name.startswith(f"{BANK}.")]
    erase_unused(gm, [n for n in gm.graph.nodes if _in_bank(n) or (n.meta.get(BANK) and not n.users)])
    read = _read(gm)
    left = [name for name in stored if name in read]
    if stored and not left:
        gm.delete_submodule(BANK)
    return left


def _read(gm: GraphModule) -> Collection[str]:
    return {str(n.target) for n in gm.graph.find_nodes(op="get_attr")}
