"""distribute: from weight space to activation space, one algebraic rule per structure of the change.

A layer is linear in its weight, so `layer(x, W + s·Δ, b) = layer(x, W, b) + s · layer(x, Δ)`; and a structured Δ
needs no dense matrix:

- `Δ = U @ D`: a narrow layer with D, then a 1×1 layer with U (stride, padding and dilation stay with D);
- `Δ = A ⊗ B` on a Linear: reshape x to `(…, m, n)`, B on n, A on m (never the dense Kronecker product);
- a Tucker core on a convolution: 1×1 with the input factor, the core's k×k, 1×1 with the output factor.

Each firing peels the outermost change off a weight, so several adapters become several chains. What has no such
form (a Hadamard product) stays in weight space. Chains run in the activations' dtype.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from math import prod
from typing import Any, final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.layers import KINDS, LayerKind, sites
from lyc_fx.pipeline import done
from lyc_fx.program import BANK
from lyc_fx.rewrite import Bindings, Either, Emit, Miss, Op, Pattern, Rule, Var, arguments, rewrite

aten = torch.ops.aten
_PEELED = "lyc_fx_peeled"
"""Marks a layer that a firing left with what remains of its weight."""
_DEEPEST = 99
Chain = Callable[[Emit, LayerKind, Bindings, Node], Node | Miss]
"""What a structure does to activations: from the layer's match and its input to `layer(x, Δ)`"""


@final
@dataclass(frozen=True)
class Distribute(PassBase):
    """Option: the sites (names of layer nodes) to rewrite; None is every site where a rule fits."""

    sites: Collection[str] | None = None

    def call(self, gm: GraphModule) -> PassResult:
        chosen = {s.node for s in sites(gm.graph) if self.sites is None or s.node.name in self.sites}

        def adapted(node: Node) -> bool:
            if node not in chosen and not node.meta.get(_PEELED):
                return False
            weight = node.args[KINDS[node.target].weight]  # type: ignore[index]  # the sites are of the table
            return isinstance(weight, Node) and reads_bank(weight)

        fired = rewrite(gm, RULES, wanted=adapted, explain=adapted)
        return done(gm, "distribute", fired.count, fired.misses)


def reads_bank(node: Node) -> bool:
    """Whether a weight depends on a spliced adapter."""
    seen, pending = {node}, [node]
    while pending:
        current = pending.pop()
        if current.op == "get_attr" and str(current.target).startswith(f"{BANK}."):
            return True
        pending += [i for i in current.all_input_nodes if i not in seen]
        seen.update(current.all_input_nodes)
    return False


def _cast_to(emit: Emit, node: Node, dtype: torch.dtype) -> Node:
    return node if node.meta["val"].dtype == dtype else emit(aten.to.dtype, node, dtype)


def _linear(emit: Emit, kind: LayerKind, m: Bindings, x: Node) -> Node:
    dtype = x.meta["val"].dtype
    narrow = emit(aten.linear.default, x, _cast_to(emit, m["right"], dtype))
    return emit(aten.linear.default, narrow, _cast_to(emit, m["left"], dtype))


def _none(reason: str) -> Chain:
    """A structure that stays in weight space, and why."""
    return lambda emit, kind, m, x: Miss(reason, _DEEPEST)


def _kronecker(emit: Emit, kind: LayerKind, m: Bindings, x: Node) -> Node:
    dtype = x.meta["val"].dtype
    left, right = (_cast_to(emit, m[side], dtype) for side in ("left", "right"))
    columns = [left.meta["val"].shape[1], right.meta["val"].shape[1]]
    inner = emit(aten.linear.default, emit(aten.unflatten.int, x, -1, columns), right)  # (…, m, k)
    outer = emit(aten.linear.default, emit(aten.transpose.int, inner, -1, -2), left)  # (…, k, l)
    return emit(aten.flatten.using_ints, emit(aten.transpose.int, outer, -1, -2), -2)


def _conv(emit: Emit, kind: LayerKind, m: Bindings, x: Node) -> Node:
    kernel = m["product"].meta["val"].shape[2:]
    narrow = _layer(emit, m, x, _grouped(emit, m, x, m["right"], list(kernel)))
    return _pointwise(emit, m, narrow, _grouped(emit, m, x, m["left"], [1] * kind.spatial, repeat=False))


def _tucker(emit: Emit, kind: LayerKind, m: Bindings, x: Node) -> Node:
    ones, kernel = [1] * kind.spatial, list(m["product"].meta["val"].shape[2:])
    inner = _pointwise(emit, m, x, _grouped(emit, m, x, emit(aten.t.default, m["columns"]), ones))
    core = _layer(emit, m, inner, _grouped(emit, m, x, m["taps"], kernel))
    return _pointwise(emit, m, core, _grouped(emit, m, x, m["left"], ones, repeat=False))


def _grouped(emit: Emit, m: Bindings, x: Node, factor: Node, kernel: list[int], repeat: bool = True) -> Node:
    """A matrix as a convolution's weight, in x's dtype. All groups share the rank, so each gets a copy."""
    rows, columns = factor.meta["val"].shape
    shape = [rows, columns // prod(kernel), *kernel]
    factor = _cast_to(emit, emit(aten.reshape.default, factor, shape), x.meta["val"].dtype)
    groups = arguments(m["layer"])[6]
    return emit(aten.repeat.default, factor, [groups] + [1] * (len(kernel) + 1)) if repeat and groups != 1 else factor


def _layer(emit: Emit, m: Bindings, x: Node, weight: Node) -> Node:
    """The base layer's own operator, with its stride, padding, dilation and groups, on another weight."""
    return emit(m["layer"].target, x, weight, None, *arguments(m["layer"])[3:])


def _pointwise(emit: Emit, m: Bindings, x: Node, weight: Node) -> Node:
    """A 1×1 convolution in the same groups."""
    spatial = weight.meta["val"].dim() - 2
    plain = {1: aten.conv1d.default, 2: aten.conv2d.default, 3: aten.conv3d.default}[spatial]
    return emit(plain, x, weight, None, [1] * spatial, [0] * spatial, [1] * spatial, arguments(m["layer"])[6])


def _peel(chain: Chain) -> Callable[[Emit, Bindings], Node | Miss]:
    """`layer(x, round(rest + s·product), b)` → `layer(x, round(rest), b) + s·chain(x)`."""

    def replace(emit: Emit, m: Bindings) -> Node | Miss:
        layer: Node = m["layer"]
        kind = KINDS[layer.target]  # type: ignore[index]  # the pattern matched an operator of the table
        x = layer.args[kind.input]
        assert isinstance(x, Node)
        change = chain(emit, kind, m, x)
        if isinstance(change, Miss):
            return change
        rest = emit(aten.t.default, m["rest"]) if kind.transposed else m["rest"]
        args = list(layer.args)
        args[kind.weight] = _cast_to(emit, rest, m.get("cast", rest.meta["val"].dtype))
        base = emit(layer.target, *args)
        base.meta[_PEELED] = True
        return emit(aten.add.Tensor, base, emit(aten.mul.Tensor, change, m["scale"]))

    return replace


def _rule(name: str, kinds: list[LayerKind], product: Pattern, chain: Chain) -> list[Rule]:
    total = Op(aten.add.Tensor, Var("rest"), Op(aten.mul.Tensor, product, Var("scale", _scalar)))

    def layer(kind: LayerKind) -> Op:
        stored = Op(aten.t.default, total) if kind.transposed else total
        weight = Either(stored, Op(aten.to.dtype, stored, Var("cast")))
        return Op(kind.op, *(Var(f"argument {i}") for i in range(kind.weight)), weight, name="layer")

    return [Rule(f"{name} on {kind.op}", layer(kind), _peel(chain)) for kind in kinds]


def _scalar(value: Any) -> str | None:
    fits = not isinstance(value, Node) or value.meta["val"].dim() == 0
    return None if fits else "not a scalar"


_RESHAPE = (aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def _reshaped(pattern: Pattern, name: str | None = None) -> Pattern:
    return Op(_RESHAPE, pattern, name=name)


def _matrix(value: Any) -> str | None:
    return None if isinstance(value, Node) and value.meta["val"].dim() == 2 else "not a matrix"


_PRODUCT = Op(aten.matmul.default, Var("left", _matrix), Var("right", _matrix), name="product")
_FLAT = Op(aten.matmul.default, Var("left", _matrix), Var("right", _matrix))
_KRON = Op(aten.kron.default, Var("left"), Var("right"), name="product")
_INNER = _reshaped(Op(aten.matmul.default, Var("left", _matrix), Var("taps", _matrix)), name="inner")
_OUTER = (aten.matmul.default, Var("columns", _matrix), _INNER)
_TUCKER = Either(_reshaped(Op(*_OUTER), name="product"), Op(*_OUTER, name="product"))
_HADAMARD = Op(aten.mul.Tensor, Var("left"), Var("right"))

_LINEARS = [kind for kind in KINDS.values() if not kind.spatial]
_CONVS = [kind for kind in KINDS.values() if kind.spatial]
RULES = (
    *_rule("low rank", _LINEARS, _PRODUCT, _linear),
    *_rule("Kronecker", _LINEARS, _KRON, _kronecker),
    *_rule("low rank", _CONVS, _reshaped(_FLAT, "product"), _conv),
    *_rule("Tucker", _CONVS, _TUCKER, _tucker),
    *_rule("Kronecker", _CONVS, _KRON, _none("a Kronecker product on a convolution has no chain yet")),
    *_rule("Hadamard", [*_LINEARS, *_CONVS], _HADAMARD, _none("a product of two full tensors has no chain")),
)
