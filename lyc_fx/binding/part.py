"""The part of an adapter for some rows of a fused weight."""

from dataclasses import replace

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra.shapes import Shape
from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.locon import LoCon


def part_of(adapter: Adapter, rows: tuple[int, int] | None, shape: Shape) -> Adapter:
    """The adapter of these rows alone of a weight of this shape; itself for None, which is all.

    A fused adapter that was trained as several is block-sparse: ranks of which nothing reaches these rows are left out.
    Raises BadAdapter where rows depend on each other.
    """
    if rows is None:
        return adapter
    cut = adapter.rows(*rows, shape)
    if not isinstance(cut, LoCon) or cut.mid is not None:
        return cut
    used = matrix(cut.up).ne(0).any(dim=0)
    if bool(used.all()) or not bool(used.any()):
        return cut
    alpha = cut.scale * int(used.sum()) if cut.alpha else None
    return replace(cut, up=cut.up[:, used], down=cut.down[used], alpha=alpha)
