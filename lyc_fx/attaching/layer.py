"""One adapted module of a model."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_from_zero
from typing import final

from torch import Tensor, nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.bank import NAME, Bank, leaf
from lyc_fx.attaching.forwards import Forward, Shell, install, substituted
from lyc_fx.attaching.layer_program import LayerProgram, layer_key
from lyc_fx.attaching.quantized import OWN, Own, value_of
from lyc_fx.binding.bound import Bound
from lyc_fx.graph.exchange import fill
from lyc_fx.graph.merged_weight import Term
from lyc_fx.graph.places import Filled
from lyc_fx.graph.program import BANK, without_autocast
from lyc_fx.graph.staging import staged_values

Given = Mapping[str, Sequence[Bound]]
"""Adapters by the name of a parameter in its module, in the shapes of the room"""


@final
@dataclass(frozen=True, eq=False)
class Layer:
    """A module whose forward was replaced."""

    module: nn.Module
    bank: Bank
    program: LayerProgram | None
    """None for a module whose own code runs with merged weights"""
    detach: Callable[[], None]
    """Gives the module its own forward back, and takes its bank away"""
    merged: tuple[str, ...] = ()
    """The parameters that merged weights stand for, where there is no program"""
    key: Hashable = None
    """`layer_key` when the program was made"""

    @classmethod
    def chained(cls, module: nn.Module, program: LayerProgram, held: Mapping[str, Tensor], *, saved: bool) -> "Layer":
        """Let a module run a program, with a bank of these tensors, which need no values yet."""
        bank = Bank(held, saved=saved)
        if OWN in program.reads:
            object.__setattr__(bank, leaf(OWN), Own(module))  # no submodule: it would contain itself
        layer = cls._of(module, bank, program, program.forward)
        return replace(layer, key=layer_key(module))

    @classmethod
    def substituted(cls, module: nn.Module, merged: Mapping[str, Tensor]) -> "Layer":
        """Let a module's own code run with other values of some parameters."""
        bank = Bank(merged, saved=False)
        object.__setattr__(bank, "shell", Shell(module))  # no submodule: it would contain itself
        return replace(cls._of(module, bank, None, substituted(tuple(merged))), merged=tuple(merged))

    @classmethod
    def _of(cls, module: nn.Module, bank: Bank, program: LayerProgram | None, forward: Forward) -> "Layer":
        remove = install(module, forward)
        module.add_module(NAME, bank)

        def detach() -> None:
            remove()
            delattr(module, NAME)

        return cls(module, bank, program, detach)

    @property
    def is_at_home(self) -> bool:
        """Whether the program is for the device and the dtype that the module has now."""
        return layer_key(self.module) == self.key

    @property
    def values(self) -> dict[str, Tensor]:
        """The merged weights that stand in the place of the module's own, by their names there."""
        return {name: self.bank.read(name) for name in self.merged}

    @property
    def terms(self) -> list[Term]:
        """The places of the layer's program; none of a module that runs with merged weights."""
        return [] if self.program is None else [t for made in self.program.merged.values() for t in made.terms]

    @property
    def computed_from(self) -> list[str]:
        """The module's own tensors, by their names there, from which what is in the bank is computed."""
        return list(self.merged) if self.program is None else self.program.staged_from

    @property
    def can_idle(self) -> bool:
        """Whether its program runs as without adapters where all places are empty."""
        return bool(self.terms) and all(term.adapter.inert(0.0) for term in self.terms)

    def fill(self, filled: Sequence[Filled], room: Room, *, others: bool = True) -> None:
        """Put adapters into the places of the layer's program, and compute what is staged.

        `others`: more than their strengths may differ from what is there.
        """
        assert self.program is not None
        fill_bank(self.program, self.module, self.bank.read, filled, room, others=others)


def fill_bank(
    program: LayerProgram,
    module: nn.Module,
    held: Callable[[str], Tensor],
    filled: Sequence[Filled],
    room: Room,
    *,
    others: bool = True,
) -> None:
    """Put adapters into a program's places, and compute what is staged, in tensors that `held` gives by name."""

    def read(name: str) -> Tensor:
        return held(name) if name.startswith(f"{BANK}.") else value_of(module, name)

    if others:
        fill(filled, room.numbers, held)
    for term, bound in filled:
        held(term.strength).fill_(0.0 if bound is None else bound.strength)
    if program.staging is not None:
        with without_autocast():
            for name, value in staged_values(program.staging, read):
                held(name).copy_(value)


def numbered(given: Given) -> dict[str, tuple[Bound, ...]]:
    """The adapters as if each were a set of its own, so that each has a strength of its own."""
    count = count_from_zero()
    return {name: tuple(replace(each, index=next(count)) for each in bound) for name, bound in given.items()}


def places(program: LayerProgram, given: Given, room: Room, *, sequential: bool = False) -> list[Filled] | None:
    """Pair each place of a program with one of the adapters, or with None; None if one of them has no place."""
    filled: list[Filled] = []
    if given.keys() - program.merged.keys():
        return None
    for name, made in program.merged.items():
        bound = list(given.get(name, ()))
        if sequential and len(bound) != len(made.terms):
            return None
        for term in made.terms:
            fitting = next((b for b in (bound[:1] if sequential else bound) if _fits(b, term, room)), None)
            if fitting is not None:
                bound.remove(fitting)
            elif not term.adapter.inert(0.0):
                return None
            filled.append((term, fitting))
        if bound:
            return None
    return filled


def form_key(bound: Sequence[Bound], room: Room) -> Hashable:
    """What is equal for adapters that one program is for."""
    return tuple((each.rows, room.form(each.adapter).structure()) for each in bound)


def _fits(bound: Bound, term: Term, room: Room) -> bool:
    return bound.rows == term.rows and room.form(bound.adapter).structure() == term.adapter.structure()
