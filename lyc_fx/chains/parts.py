"""What the structures' patterns share, and the two forms of a rule."""

from collections.abc import Callable, Iterable
from typing import Any, final

import torch
from torch.fx import Node

from lyc_fx.chains.layer import Layer
from lyc_fx.layers import KINDS, LayerKind, position, transpose_of
from lyc_fx.program import BANK, holds
from lyc_fx.rewrite import EMITTED, Bindings, Emit, Miss, Op, Pattern, Rule, Var

aten = torch.ops.aten
Chain = Callable[[Layer, Bindings], Node | Miss]
"""What a structure times `scale` does to activations, from the layer and what the pattern bound.

The scale goes into the factor that meets the activations first: alpha/r comes early, so that float16 does not overflow
on the way to a result that fits.
"""
RESHAPES = (aten.reshape.default, aten.view.default, aten._unsafe_view.default, aten.flatten.using_ints)
DEEPEST = 99
"""Depth of a miss that says all there is to say."""
Kinds = Iterable[tuple[torch._ops.OpOverload, LayerKind]]
LINEARS = [(op, kind) for op, kind in KINDS.items() if not kind.spatial]
CONVS = [(op, kind) for op, kind in KINDS.items() if kind.spatial]
LAYERS = [*LINEARS, *CONVS]


def stripped(node: Node) -> Node:
    """The node behind reshapes and widening casts that lyc-fx inserted: the same numbers in the same order."""
    while node.meta.get(EMITTED):
        source = node.args[0] if node.args else None
        if not isinstance(source, Node) or not (node.target in (*RESHAPES, aten.unsqueeze.default) or _widens(node)):
            break
        node = source
    return node


def _widens(node: Node) -> bool:
    if node.target is not aten.to.dtype:
        return False
    narrow, wide = node.args[0].meta["val"].dtype, node.args[1]  # type: ignore[union-attr]  # a cast of a tensor
    return narrow.is_floating_point and holds(wide, narrow)  # type: ignore[arg-type]


@final
class Viewed(Pattern):
    """Matches a pattern against what `stripped` gives."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern

    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        return self.pattern.match(stripped(value) if isinstance(value, Node) else value, bound, depth)


@final
class Stored(Pattern):
    """Matches a pattern against a weight that the layer reads as it is or transposed; binds which, as `transposed`."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern

    def match(self, value: Any, bound: Bindings, depth: int = 0) -> Bindings | Miss:
        transposed = cast = False
        while isinstance(value, Node):
            if (source := transpose_of(value)) is not None:
                transposed, value = not transposed, source
            elif value.target is aten.to.dtype and not cast:
                cast, value = True, value.args[0]
            else:
                break
        return self.pattern.match(value, {**bound, "transposed": transposed}, depth)


def shape(node: Any) -> tuple[int, ...]:
    """The shape of a node's value; that of a factor or weight is numbers."""
    return tuple(node.meta["val"].shape)


def matrix(value: Any) -> str | None:
    """For `Var`: nothing but a matrix."""
    return None if isinstance(value, Node) and len(shape(value)) == 2 else "not a matrix"


def scalar(value: Any) -> str | None:
    """For `Var`: a number or a tensor of no dimensions."""
    return None if not isinstance(value, Node) or not shape(value) else "not a scalar"


def factors_only(node: Node) -> bool:
    """Whether a node is computed from an adapter's factors alone, without the weight."""
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if current.op == "placeholder" or (current.op == "get_attr" and not str(current.target).startswith(BANK)):
            return False
        pending += [i for i in current.all_input_nodes if i not in seen]
        seen.update(current.all_input_nodes)
    return True


def whole(name: str, total: Pattern, chain: Chain, kinds: Kinds = LAYERS) -> list[Rule]:
    """`layer(x, round(total), b)` → what the chain gives, for each layer kind."""

    def replace(emit: Emit, m: Bindings) -> Node | Miss:
        layer = Layer(emit, m["layer"], m["transposed"])
        if layer.node.kwargs:  # addmm's alpha and beta
            return Miss(f"the layer is called with {', '.join(layer.node.kwargs)}", DEEPEST)
        if (fault := layer.kind.fault(layer.node)) is not None:
            return Miss(fault, DEEPEST)
        if layer.mapped:
            return Miss("the layer is under torch.func.vmap", DEEPEST)
        result = chain(layer, m)
        return result if isinstance(result, Miss) else layer.kind.finish(emit, layer.node, result)

    def site(op: torch._ops.OpOverload, kind: LayerKind) -> Op:
        before = (Var(f"argument {i}") for i in range(position(op, kind.weight)))
        return Op(op, *before, Stored(total), ..., name="layer")

    return [Rule(f"{name} on {op}", site(op, kind), replace) for op, kind in kinds]


def term(name: str, product: Pattern, chain: Chain, kinds: Kinds = LAYERS) -> list[Rule]:
    """`layer(x, round(rest + s·product), b)` → `layer(x, round(rest), b) + chain(x)`."""

    def peel(layer: Layer, m: Bindings) -> Node | Miss:
        change = chain(layer, m)
        if isinstance(change, Miss):
            return change
        return layer.emit(aten.add.Tensor, layer.again(m["rest"]), change)

    return whole(name, scaled_sum(product), peel, kinds)


def scaled_sum(product: Pattern) -> Op:
    """`rest + product·scale`"""
    return Op(aten.add.Tensor, Var("rest"), Op(aten.mul.Tensor, product, Var("scale", scalar)))


def stays(name: str, total: Pattern, reason: str) -> list[Rule]:
    """A structure that has no chain, and why."""
    return whole(name, total, lambda layer, m: Miss(reason, DEEPEST))
