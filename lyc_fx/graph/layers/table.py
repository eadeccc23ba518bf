"""The table of layer kinds. A new one is a file and a row here, or comes from outside (`lyc_fx.register`)."""

from collections.abc import Mapping
from functools import lru_cache

import torch

from lyc_fx.errors import WrongArgument
from lyc_fx.extensions import Table, shown
from lyc_fx.graph.layers.addmm import Addmm
from lyc_fx.graph.layers.any_convolution import AnyConvolution
from lyc_fx.graph.layers.bmm import Bmm
from lyc_fx.graph.layers.convolution import Convolution
from lyc_fx.graph.layers.embedding import Embedding
from lyc_fx.graph.layers.kind import LayerKind
from lyc_fx.graph.layers.linear import Linear
from lyc_fx.graph.layers.matmul import Matmul, Mm
from lyc_fx.graph.layers.transposed_convolution import TransposedConvolution

_ROWS: tuple[LayerKind, ...] = (
    Linear(), Addmm(), Matmul(), Mm(), Bmm(), Embedding(), Convolution(), TransposedConvolution(), AnyConvolution(),
)  # fmt: skip


def kinds() -> Mapping[torch._ops.OpOverload, LayerKind]:
    """Every layer kind by its operators."""
    return _by_operator(TABLE.all())


@lru_cache(maxsize=1)
def _by_operator(rows: tuple[LayerKind, ...]) -> Mapping[torch._ops.OpOverload, LayerKind]:
    return {op: kind for kind in rows for op in kind.ops}


def _check(kind: LayerKind, others: tuple[LayerKind, ...]) -> None:
    """Raise WrongArgument for a kind without operators of its own, or that names arguments which they do not have."""
    if not getattr(kind, "ops", ()):
        raise WrongArgument(f"{shown(kind)} declares no ops")
    for op in kind.ops:
        if not isinstance(op, torch._ops.OpOverload):
            raise WrongArgument(f"{shown(kind)}: {op} is no operator's overload, such as torch.ops.aten.linear.default")
        for other in others:
            if op in other.ops:
                raise WrongArgument(f"{shown(kind)} and {shown(other)} have the same operator, {op}")
        names = {argument.name for argument in op._schema.arguments}
        wanted = {kind.x, kind.weight} | ({kind.bias} if kind.bias is not None else set())
        if missing := sorted(wanted - names):
            raise WrongArgument(f"{shown(kind)}: {op} has no argument {', '.join(missing)}")


TABLE: Table[LayerKind] = Table("lyc_fx.layers", LayerKind, _ROWS, _check)
