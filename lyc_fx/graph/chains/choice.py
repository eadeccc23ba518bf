"""Which adapters of a merged weight leave it for the activations. Reasons why not come from the algebra (NoChain)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self, final

from lyc_fx.algebra.layer import NoChain
from lyc_fx.graph.chains.formula import Chain

Attempt = Callable[[Chain], object]
"""Traces a chain. Raises NoChain"""


@final
@dataclass(frozen=True)
class Choice:
    """For the terms of one merged weight at one layer, by position."""

    reasons: tuple[str | None, ...]
    """Why a term stays with the weight; None for one that has a chain"""

    @property
    def chained(self) -> tuple[int, ...]:
        """The positions of those that have a chain."""
        return tuple(position for position, reason in enumerate(self.reasons) if reason is None)

    @classmethod
    def of(cls, chain: Chain, attempt: Attempt) -> Self:
        """As many terms as have a chain, from that of all."""
        return cls(_from_last(chain, attempt) if chain.made.sequential else _each(chain, attempt))

    def applied(self, chain: Chain) -> Chain:
        """The chain of the chosen terms, from that of all."""
        return with_terms(chain, self.chained)


def _from_last(chain: Chain, attempt: Attempt) -> tuple[str | None, ...]:
    """Of a sequence: what comes after the last term without a chain."""
    count = len(chain.made.terms)
    miss: str | None = None
    for start in range(count):
        found = _miss(with_terms(chain, range(start, count)), attempt)
        if found is None:
            return (*[miss] * start, *[None] * (count - start))
        miss = found
    return (miss,) * count


def _each(chain: Chain, attempt: Attempt) -> tuple[str | None, ...]:
    """Of a sum: all together, or else each term that has a chain beside others."""
    count, miss = len(chain.made.terms), _miss(chain, attempt)
    if miss is None or count == 1:
        return (miss,) * count
    return tuple(_miss(with_terms(chain, [position]), attempt) for position in range(count))


def with_terms(chain: Chain, positions: Sequence[int]) -> Chain:
    """The chain of some of its terms, beside a weight that is merged with the others."""
    terms = tuple(chain.made.terms[position] for position in positions)
    return replace(chain, made=replace(chain.made, terms=terms), rest=len(terms) < len(chain.made.terms))


def _miss(chain: Chain, attempt: Attempt) -> str | None:
    try:
        attempt(chain)
    except NoChain as miss:
        return str(miss)
    return None
