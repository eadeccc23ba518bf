"""The places of a program's adapters, into which others can be put: `splice(…, rank=…)` makes them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

from lyc_fx.adapters.padding import Room
from lyc_fx.binding.bind import bind
from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.stack import Stack
from lyc_fx.binding.twins import Twins
from lyc_fx.errors import BadAdapter
from lyc_fx.graph.merged_weight import MergedWeight, Term


@final
@dataclass(frozen=True)
class Known:
    """What adapters can be bound to in a program."""

    weights: Mapping[str, Weight]
    aliases: Mapping[str, str]
    same: Twins
    on_disk: Mapping[str, str]

    def bind(self, stack: Stack, *, strict: bool) -> Binding:
        """Bind a stack. Raises as `lyc_fx.binding.bind.bind`."""
        elsewhere = lambda: self.on_disk  # noqa: E731
        return bind(stack, self.weights, strict=strict, aliases=self.aliases, same=self.same, elsewhere=elsewhere)


Filled = tuple[Term, Bound | None]
"""A place, and what to put there: None for nothing"""


@final
@dataclass(frozen=True)
class Places:
    """Of one program, by weight."""

    room: Room
    merged: Mapping[str, MergedWeight]

    @property
    def sets(self) -> list[str]:
        """The names of the buffers of the adapter sets' strengths, in order."""
        return sorted(
            {t.strength for made in self.merged.values() for t in made.terms}, key=lambda n: int(n.split(".")[1])
        )

    def filled(self, binding: Binding) -> Iterator[Filled]:
        """Pair every place with an adapter of a binding, or with None.

        Raises BadAdapter if an adapter has no place: its weight was not adapted when the program was made, or by
        another algorithm, variant or rank.
        """
        for name in binding.targets:
            if name not in self.merged:
                raise BadAdapter(
                    f"{name}: no adapter was spliced in there, so that none can take its place: splice the program anew"
                )
        for name, made in self.merged.items():
            bound = [self._padded(name, each) for each in binding.targets.get(name, ())]
            for term in made.terms:
                fitting = next((each for each in bound if self._fits(each, term)), None)
                if fitting is not None:
                    bound.remove(fitting)
                elif not term.adapter.inert(0.0):
                    raise BadAdapter(
                        f"{name}: a {term.adapter.name} of the convention {term.adapter.convention!r} has an effect "
                        "even at strength 0: give an adapter for each weight"
                    )
                yield term, fitting
            if bound:
                raise BadAdapter(f"{name}: {_unlike(bound[0], made.terms)}")

    def _padded(self, name: str, bound: Bound) -> Bound:
        try:
            return replace(bound, adapter=self.room.padded(bound.adapter))
        except BadAdapter as error:
            raise BadAdapter(f"{name}: {error}: splice the program anew with rank={bound.adapter.rank}") from error

    def _fits(self, bound: Bound, term: Term) -> bool:
        same_part = bound.rows == term.rows and bound.index == _set_of(term)
        return same_part and self.room.form(bound.adapter).structure() == term.adapter.structure()


def _set_of(term: Term) -> int:
    return int(term.strength.split(".")[1])


def _unlike(bound: Bound, terms: Sequence[Term]) -> str:
    given = bound.adapter
    shapes = ", ".join(f"{name} {tuple(factor.shape)} {factor.dtype}" for name, factor in given.factors().items())
    there = "; ".join(
        f"{t.adapter.name} of "
        + ", ".join(f"{name} {tuple(f.shape)} {f.dtype}" for name, f in t.adapter.factors().items())
        for t in terms
        if _set_of(t) == bound.index
    )
    return (
        f"{given.name} of {shapes} does not have the form of the adapter in set {bound.index} of the program "
        f"({there or 'there is none'}): splice the program anew, or use lyc_fx.live, which takes any adapter"
    )
