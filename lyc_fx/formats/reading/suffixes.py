"""Which suffix of a key is of which family, by what the families declare."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import final

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import families

SPARSE = ("bias_indices", "bias_values", "bias_size")
"""What LyCORIS's extraction leaves of the weight's difference beside its low-rank part, as a sparse matrix."""


@final
@dataclass(frozen=True)
class Suffixes:
    """The suffixes of some families."""

    weight: Mapping[str, type[Adapter]]
    """Of adapters of a module's weight"""
    bias: Mapping[str, type[Adapter]]
    shared: frozenset[str]
    """Those that several families have"""
    longest_first: tuple[str, ...]
    """Every suffix that a module's tensors may have"""


def suffixes() -> Suffixes:
    """Those of all families there are now."""
    return _of(families())


@lru_cache(maxsize=1)
def _of(known: tuple[type[Adapter], ...]) -> Suffixes:
    weight = {suffix: f for f in known for suffix in (*f.suffixes.values(), *f.scalars.values())}
    bias = {suffix: f for f in known for suffix in f.bias_suffixes.values()}
    counts = Counter(suffix for f in known for suffix in {*f.suffixes.values()})
    shared = frozenset(suffix for suffix, count in counts.items() if count > 1)
    every = {*weight, *bias, *SPARSE, "alpha"}
    return Suffixes(weight, bias, shared, tuple(sorted(every, key=lambda suffix: (-len(suffix), suffix))))
