"""How the strengths of adapter sets enter a lowered program, and what the program computes without them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lyc_fx.errors import Unsupported
from lyc_fx.graph.rewrite import EMITTED, Emit

aten = torch.ops.aten
MUL = aten.mul.Tensor


def scalars(gm: GraphModule, strengths: Mapping[Node, int]) -> dict[Node, int]:
    """The numbers that are computed from one strength, with the position of its set. `strengths` are among them.

    Raises Unsupported for a number of several strengths.
    """
    found = dict(strengths)
    for node in gm.graph.nodes:
        if node.op != "call_function" or not node.meta.get(EMITTED) or not _is_number(node):
            continue
        sets = {found[source] for source in node.all_input_nodes if source in found}
        if len(sets) > 1:
            raise Unsupported(f"{node.name} is computed from the strengths of {len(sets)} adapter sets at once")
        if sets:
            found[node] = sets.pop()
    return found


def without(emit: Emit, scalar: Node, strengths: Mapping[Node, int]) -> Any:
    """A number divided by its strength: None for 1. Raises Unsupported where it is no multiple of it."""
    if scalar in strengths:
        return None
    if scalar.target is aten.to.dtype and not scalar.kwargs:
        inner = without(emit, scalar.args[0], strengths)  # type: ignore[arg-type]
        return emit(aten.to.dtype, inner, *scalar.args[1:]) if isinstance(inner, Node) else inner
    if scalar.target is MUL:
        left, right = scalar.args
        if not _depends(left, strengths):
            left, right = right, left
        if not _depends(right, strengths):
            inner = without(emit, left, strengths)  # type: ignore[arg-type]
            return right if inner is None else emit(MUL, inner, right)
    raise Unsupported(f"{scalar.name}, {scalar.target}, is no multiple of its strength")


@final
@dataclass(frozen=True)
class Scaled:
    """A stored tensor of which all, or stretches along one dimension, are multiplied by strengths."""

    stretches: tuple[tuple[int, int | None], ...]
    """Sizes, and whose strength it is; None for no strength. One stretch is the whole tensor"""
    dim: int = 0

    def through(self, source: Node, node: Node) -> "Scaled | None":
        """What an operator on one such tensor gives; None if the stretches are lost."""
        before, after = source.meta["val"], node.meta["val"]
        if node.target not in _LINEAR:
            return None
        if len(self.stretches) == 1 or node.target is aten.to.dtype:
            return self
        if node.target in (aten.t.default, aten.numpy_T.default) and before.dim() == 2:
            return Scaled(self.stretches, 1 - self.dim)
        if node.target is aten.repeat.default and self.dim == 0 and set(node.args[1][1:]) == {1}:  # type: ignore[index, arg-type]
            return Scaled(self.stretches * int(node.args[1][0]))  # type: ignore[index, arg-type]
        kept = self.dim == 0 and node.target in _RESHAPES and before.shape[0] == after.shape[0]
        return self if kept else None


def joined(parts: "list[tuple[Node, Scaled | None]]", dim: int) -> Scaled | None:
    """What `cat` makes of tensors along a dimension; None if it is not one of stretches along that."""
    stretches: list[tuple[int, int | None]] = []
    for node, scaled in parts:
        size = int(node.meta["val"].shape[dim])
        if scaled is None:
            stretches.append((size, None))
        elif len(scaled.stretches) == 1:
            stretches.append((size, scaled.stretches[0][1]))
        elif scaled.dim == dim:
            stretches += scaled.stretches
        else:
            return None
    sets = {each for _, each in stretches}
    return Scaled(((0, sets.pop()),)) if len(sets) == 1 else Scaled(tuple(stretches), dim)


_RESHAPES = frozenset({aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int})
_LINEAR = _RESHAPES | {
    aten.to.dtype, aten.t.default, aten.numpy_T.default, aten.transpose.int, aten.permute.default, aten.repeat.default,
    aten.unsqueeze.default, aten.squeeze.dim, aten.expand.default, aten.contiguous.default, aten.clone.default,
}  # fmt: skip


def _is_number(node: Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.dim()


def _depends(value: Any, strengths: Mapping[Node, int]) -> bool:
    return isinstance(value, Node) and (
        value in strengths or any(_depends(source, strengths) for source in value.all_input_nodes)
    )
