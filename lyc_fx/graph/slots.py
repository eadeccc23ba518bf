"""The slots of a lifted program: what its adapter inputs are called, and what they stand for."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self, final

from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra.factor_shapes import RANK, parsed
from lyc_fx.graph.places import Places
from lyc_fx.graph.program import BANK

ADAPTER, STRENGTHS = "adapter", "strengths"
"""The names of the two arguments"""


@final
@dataclass(frozen=True)
class Slots:
    """Of one program. Inputs are called as the buffers that they replace, `<set>.<weight>.<factor>`."""

    factors: Mapping[str, str]
    """From the name of each input in `adapter` to the program's name for that factor"""
    vectors: Mapping[str, tuple[str, ...]]
    """`alphas` and `shares` in `adapter`, float64: the program's names for their elements, in order"""
    strengths: tuple[str, ...]
    """The program's names for the adapter sets' strengths, in order"""
    ranks: Mapping[str, tuple[int, ...]]
    """The dimensions of each factor that are its rank, by the input's name; only of sums, which zeros leave alone"""

    @classmethod
    def of(cls, places: Places) -> Self:
        """Those of a program's places."""
        terms = [term for made in places.merged.values() for term in made.terms]
        factors, ranks = {}, {}
        for term in terms:
            words = dict(parsed(term.adapter.shapes)) if isinstance(term.adapter, Additive) else {}
            for field, name in term.places.items():
                key = name.removeprefix(f"{BANK}.")
                factors[key] = name
                ranks[key] = tuple(at for at, word in enumerate(words.get(field, ())) if RANK.fullmatch(word))
        numbers = {
            f"{kind}s": tuple(t.numbers[kind] for t in terms if kind in t.numbers) for kind in ("alpha", "share")
        }
        return cls(factors, {key: names for key, names in numbers.items() if names}, tuple(places.sets), ranks)

    @property
    def names(self) -> set[str]:
        """All that the inputs stand for, by the program's names."""
        return {*self.factors.values(), *self.strengths, *(name for names in self.vectors.values() for name in names)}
