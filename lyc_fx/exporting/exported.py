"""Turning a captured program back into a `torch.export` program, with the dynamic sizes of its capture."""

from collections.abc import Mapping, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._dynamo.exc import UserError
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.exporting.interface import input_names
from lyc_fx.graph.program import Range, facts, without_autocast
from lyc_fx.graph.slots import ADAPTER


def to_exported_program(program: GraphModule) -> ExportedProgram:
    """Export a captured program again, and return the result.

    Sizes that were equal in the capture, or multiples of each other, are so again, even if the graph alone does not
    require it. Other conditions of the capture (`a.shape[0] + b.shape[0] <= 77`) are checked again. If torch refuses
    named sizes because of such a condition, it infers itself which sizes are equal. Raises what torch.export raises.
    """
    inputs = {str(node.target): node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")}
    free = _ranks(program)
    spec = program.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
    args, kwargs = pytree.tree_unflatten([_example(value) for value in inputs.values()], spec)
    known = facts(program).ranges

    def attempt(shapes: Sequence[Any]) -> ExportedProgram:
        of_args, of_kwargs = pytree.tree_unflatten(shapes, spec)
        with torch.enable_grad(), without_autocast():
            dynamic = (*of_args, *of_kwargs.values()) or None
            return torch.export.export(program, tuple(args), kwargs, dynamic_shapes=dynamic, strict=False)

    try:
        made = attempt([_with(shapes, dims) for shapes, dims in zip(_named(inputs, known), free, strict=True)])
    except UserError:
        shapes = [_sizes(value, lambda size, _: _unnamed(size, known)) for value in inputs.values()]
        made = attempt([_with(each, dims) for each, dims in zip(shapes, free, strict=True)])
    made._guards_code = list(dict.fromkeys((*made._guards_code, *facts(program).guards)))
    return made


def _ranks(program: GraphModule) -> list[tuple[int, ...]]:
    """The dimensions of each input that are the rank of an adapter, which may vary where the program allows it."""
    slots = facts(program).slots
    if slots is None:
        return [()] * len(list(program.graph.find_nodes(op="placeholder")))
    named = [name.removeprefix(f"{ADAPTER}.") for name in input_names(program)]
    return [slots.ranks.get(name, ()) for name in named]


def _with(shapes: Any, dims: tuple[int, ...]) -> Any:
    """Dynamic shapes of an input in which further dimensions may vary, if the program allows it."""
    return {**shapes, **dict.fromkeys(dims, Dim.AUTO)} if dims else shapes


def _example(value: Any) -> Any:
    if isinstance(value, torch.SymInt):
        return value.node.hint or 2
    if not isinstance(value, Tensor):
        return value
    sizes = [s if isinstance(s, int) else s.node.hint or 2 for s in value.shape]
    return torch.zeros(sizes, dtype=value.dtype, device=value.device)


def _sizes(value: Any, dim: Any) -> Any:
    """Return `dim(size, position)` for every dynamic size of an input, by position."""
    if not isinstance(value, Tensor):
        return Dim.AUTO if isinstance(value, torch.SymInt) else None
    return {i: dim(size, i) for i, size in enumerate(value.shape) if not isinstance(size, int)}


def _named(inputs: Mapping[str, Any], known: Mapping[str, Range]) -> list[Any]:
    """Return dynamic shapes with one `Dim` for each symbol, named after the first input that has it."""
    dims: dict[sympy.Symbol, Dim] = {}

    def of(name: str, size: torch.SymInt, position: int) -> Any:
        linear = _linear(size.node.expr)
        if linear is None or str(linear[0]) not in known:
            return _unnamed(size, known)
        symbol, factor, offset = linear
        least, greatest = known[str(symbol)]
        dim = dims.setdefault(symbol, Dim(f"{name}_{position}", min=least, max=greatest))
        dim = dim if factor == 1 else factor * dim
        return dim + offset if offset else dim

    return [_sizes(value, lambda size, i, name=name: of(name, size, i)) for name, value in inputs.items()]


def _unnamed(size: torch.SymInt, known: Mapping[str, Range]) -> Any:
    """Return `Dim.AUTO` for a size, with its range if that is known."""
    linear = _linear(size.node.expr)
    if linear is None or str(linear[0]) not in known:
        return Dim.AUTO
    (_, factor, offset), (least, greatest) = linear, known[str(linear[0])]
    return Dim.AUTO(min=factor * least + offset, max=None if greatest is None else factor * greatest + offset)


def _linear(expression: sympy.Expr) -> tuple[sympy.Symbol, int, int] | None:
    """Return (symbol, factor, offset) of `factor · symbol + offset` with a positive factor; None for anything else."""
    if len(expression.free_symbols) != 1:
        return None
    [symbol] = expression.free_symbols
    factor, offset = expression.coeff(symbol, 1), expression.subs(symbol, 0)
    whole = isinstance(factor, sympy.Integer) and isinstance(offset, sympy.Integer)
    if not whole or factor < 1 or sympy.expand(expression - factor * symbol - offset) != 0:
        return None
    return symbol, int(factor), int(offset)
