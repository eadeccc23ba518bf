"""Proving that two shapes are equal for all values of a program's symbolic sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from itertools import product as combinations
from typing import Any, final

import sympy
import torch
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv, statically_known_true

Size = int | torch.SymInt
_TRIALS = 4096


@final
@dataclass(frozen=True)
class Difference:
    """Why two shapes are not known to be equal."""

    dimension: int | None
    """The dimension in which they differ; None if their numbers of dimensions differ"""
    before: str
    after: str
    counterexample: Mapping[str, int] | None
    """Sizes for which the two differ; None if neither such sizes nor a proof was found"""

    def __str__(self) -> str:
        if self.dimension is None:
            return f"{self.before} against {self.after}"
        where = f"dimension {self.dimension}: {self.before} against {self.after}"
        if self.counterexample is None:
            return f"{where}: not proved equal, and no counterexample among {_TRIALS} sizes"
        sizes = ", ".join(f"{name} = {value}" for name, value in self.counterexample.items())
        return f"{where}: they differ{f' at {sizes}' if sizes else ''}"


def difference(before: Sequence[Size], after: Sequence[Size]) -> Difference | None:
    """Compare two shapes for all values of their symbols. Returns None if they are proved equal."""
    if len(before) != len(after):
        return Difference(None, _text(before), _text(after), None)
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        if isinstance(old, int) and isinstance(new, int):
            if old != new:
                return Difference(position, str(old), str(new), {})
        elif not statically_known_true(old == new):
            left, right = _expression(old), _expression(new)
            if all(_unbacked(side, _environment(old, new)) for side in (left, right)):
                continue  # a size that depends on data gets a new symbol each time that its operator is propagated
            if sympy.expand(left - right) != 0:
                return Difference(position, str(left), str(right), _counterexample(left, right, _environment(old, new)))
    return None


def _expression(size: Size) -> sympy.Expr:
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def _unbacked(side: sympy.Expr, environment: ShapeEnv) -> bool:
    return any(environment.is_unbacked_symint(symbol) for symbol in side.free_symbols)


def _environment(*sizes: Size) -> ShapeEnv:
    environment = next(size for size in sizes if isinstance(size, torch.SymInt)).node.shape_env
    assert isinstance(environment, ShapeEnv)
    return environment


def _counterexample(left: sympy.Expr, right: sympy.Expr, environment: ShapeEnv) -> Mapping[str, int] | None:
    symbols = sorted(left.free_symbols | right.free_symbols, key=str)
    for values in islice(combinations(*(_candidates(symbol, environment) for symbol in symbols)), _TRIALS):
        sizes = dict(zip(symbols, values, strict=True))
        if left.xreplace(sizes) != right.xreplace(sizes):
            return {str(symbol): int(value) for symbol, value in sizes.items()}
    return None


def _candidates(symbol: Any, environment: ShapeEnv) -> list[sympy.Integer]:
    """Return sizes to try for a symbol: the small ones of its range, then some odd, prime and large ones."""
    bounds = environment.var_to_range.get(symbol)
    low = int(bounds.lower) if bounds is not None and isinstance(bounds.lower, sympy.Integer) else 0
    high = int(bounds.upper) if bounds is not None and isinstance(bounds.upper, sympy.Integer) else low + 10_000
    tried = [*range(low, low + 12), 17, 31, 64, 97, 255, 1024]
    return [sympy.Integer(size) for size in dict.fromkeys(tried) if low <= size <= high]


def symbol_names(gm: GraphModule) -> dict[str, str]:
    """Return where each symbol of a program comes from, in terms of its inputs: `s77` → `input_ids.shape[1]`."""
    names: dict[str, str] = {}
    for node in gm.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        for position, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt) and not size.node.expr.is_number:
                names.setdefault(str(size.node.expr), f"{node.target}.shape[{position}]")
    return names


def _text(shape: Sequence[Size]) -> str:
    return f"({', '.join(map(str, shape))})"
