"""LOKR: PEFT computes the factors' shapes from one factor for all modules, so that only those shapes can be written."""

from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any, final

from lyc_fx.algebra.factor_shapes import read
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.errors import Unsupported
from lyc_fx.formats.peft.writers.module import Module, PlainWriter, ranks_and_alphas


@final
class LokrWriter(PlainWriter):
    method = "LOKR"
    family = LoKr

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        both = any("w1" not in m.adapter.factors() for m in modules)
        ranks = {m.name: _rank(m, both) for m in modules}
        shapes = {m.name: _sides(m) for m in modules}
        factors = sorted({-1, *(size for sides in shapes.values() for pair in sides for size in pair)})
        fitting = [f for f in factors if all(_as_peft(m, shapes[m.name], ranks[m.name], f, both) for m in modules)]
        if not fitting:
            raise Unsupported(
                "PEFT computes the shapes of LOKR from one decompose_factor, and no one gives those of "
                f"{', '.join(m.name for m in modules[:5])}"
            )
        return {
            **ranks_and_alphas(modules, ranks, "alpha"),
            "decompose_both": both,
            "decompose_factor": fitting[0],
            "use_effective_conv2d": any("t2" in m.adapter.factors() for m in modules),
        }


def _rank(module: Module, both: bool) -> int:
    """The stored rank; with both factors full one that makes PEFT store them so, with alpha the same: scale 1."""
    factors = module.adapter.factors()
    for name in ("w2_b", "w1_b"):
        if name in factors:
            return factors[name].shape[0]
    sides = _sides(module)
    first, second = (max(pair) for pair in sides)
    return ceil((max(first, second) if both else second) / 2) or 1


def _sides(module: Module) -> tuple[tuple[int, int], tuple[int, int]]:
    """`(rows, columns)` of the two Kronecker factors, the kernel apart."""
    assert isinstance(module.adapter, LoKr)
    sizes = read(module.adapter.shapes, module.adapter.factors())
    return (sizes["out1"], sizes["in1"]), (sizes["out2"], sizes["in2"])


def _as_peft(
    module: Module, sides: tuple[tuple[int, int], tuple[int, int]], rank: int, factor: int, both: bool
) -> bool:
    """Whether PEFT would make factors of these shapes."""
    (rows_1, columns_1), (rows_2, columns_2) = sides
    factors = module.adapter.factors()
    inner = [columns_2]
    if "w2" not in factors and "t2" not in factors:  # a matrix of a convolution holds the kernel in its columns
        inner = [size for size in range(1, columns_2 + 1) if columns_2 % size == 0]
    for columns in inner:
        if _pair(rows_1 * rows_2, factor) != (rows_1, rows_2) or _pair(columns_1 * columns, factor) != (
            columns_1,
            columns,
        ):
            continue
        full_1 = not (both and rank < max(rows_1, columns_1) / 2)
        full_2 = rank >= max(rows_2, columns) / 2
        if (full_1, full_2) == ("w1" in factors, "w2" in factors):
            return True
    return False


def _pair(size: int, factor: int) -> tuple[int, int]:
    """How PEFT splits a dimension: by the factor where it divides, else the closest pair up to it, smaller first."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    limit = size if factor == -1 else factor
    best = (1, size)
    for small in range(2, size + 1):
        if size % small == 0:
            if small > limit or small + size // small > sum(best) or best[0] >= best[1]:
                break
            best = (small, size // small)
    return min(best), max(best)
