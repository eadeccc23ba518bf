"""The algorithms: one family of adapters per file. The folder is the table."""

from importlib import import_module
from inspect import isabstract
from pkgutil import iter_modules

import torch

from lyc_fx.adapters import declared
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra.shapes import Shape
from lyc_fx.extensions import Table

__all__ = [
    "FAMILIES",
    "TABLE",
    "families",
    "random_adapter",
]


def _own_families() -> tuple[type[Adapter], ...]:
    found: dict[str, type[Adapter]] = {}
    for module in sorted(info.name for info in iter_modules(__path__)):
        for thing in vars(import_module(f"{__name__}.{module}")).values():
            if isinstance(thing, type) and issubclass(thing, Adapter) and not isabstract(thing):
                found[thing.name] = thing
    return tuple(found.values())


FAMILIES: tuple[type[Adapter], ...] = _own_families()
"""Every family of lyc-fx's own, in the order of its file's name."""
TABLE: Table[type[Adapter]] = Table("lyc_fx.algorithms", Adapter, FAMILIES, declared.check, classes=True)


def families() -> tuple[type[Adapter], ...]:
    """`FAMILIES`, and those from outside (`lyc_fx.register`)."""
    return TABLE.all()


def random_adapter(
    family: type[Adapter],
    shape: Shape,
    *,
    layout: frozenset[str] | None = None,
    rank: int = 4,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
) -> Adapter:
    """An adapter with random, non-zero factors for a weight of this shape (for tests, demos, benchmarks).

    Raises BadAdapter where the layout does not exist for such a weight.
    """
    shapes = family.factor_shapes(shape, layout or family.layouts[0], rank)
    factors = {n: torch.randn(s, generator=generator, dtype=torch.float64).to(dtype) for n, s in shapes.items()}
    return family(alpha=alpha, **family.random_scalars(rank), **factors)  # type: ignore[arg-type]  # its own fields
