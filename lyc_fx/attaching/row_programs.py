"""The program of a layer in which the rows of the bank hold different adapters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, final

from torch import nn
from torch.fx import GraphModule

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.calls import layer_call
from lyc_fx.attaching.forwards import place_of
from lyc_fx.attaching.layer import Given, form_key, places
from lyc_fx.attaching.layer_program import LayerProgram
from lyc_fx.attaching.programs import Programs
from lyc_fx.attaching.units import WHOLE
from lyc_fx.binding.bound import Bound
from lyc_fx.errors import Unsupported
from lyc_fx.graph.places import Filled

if TYPE_CHECKING:
    from lyc_fx.attaching.rows import Row


@final
@dataclass(frozen=True)
class RowProgram:
    """A program with a place for every form of adapter that some row has."""

    program: LayerProgram
    rows: Mapping[int, Given]
    """By row, its adapters"""
    spare: Given
    """Adapters for all places: where a row has none, their factors lie there, at strength 0"""

    def filled(self, row: int, room: Room) -> list[Filled]:
        """What is in the places of a row."""
        own = places(self.program, self.rows.get(row, {}), room)
        spare = places(self.program, self.spare, room)
        assert own is not None and spare is not None
        return [
            (term, bound or (other and replace(other, strength=0.0)))
            for (term, bound), (_, other) in zip(own, spare, strict=True)
        ]


@final
class RowPrograms:
    """Of one model."""

    def __init__(self, model: nn.Module, room: Room) -> None:
        self._model, self._room, self._programs = model, room, Programs(room, "chained")

    def prepared(self, rows: Mapping[int, "Row"], had: Mapping[str, RowProgram]) -> dict[str, RowProgram]:
        """What each layer that has a program will run: as before, where there is a place for all.

        `had`: what layers run now. Raises BadAdapter and Unsupported.
        """
        captured: dict[object, GraphModule] = {}
        paths = dict.fromkeys([*had, *(path for row in rows.values() for path in row.units)])
        found = {}
        for path in paths:
            module = self._model.get_submodule(path)
            if isinstance(module, WHOLE):
                raise Unsupported(f"{path}: a {type(module).__name__} cannot be served: use lyc_fx.live or attach")
            if path not in had:
                place_of(module)
            if (call := layer_call(module)) is None:
                continue
            own = {position: self._given(path, row) for position, row in rows.items() if path in row.units}
            before = had.get(path)
            if before is not None and all(map(partial(self._fits, before.program), own.values())):
                found[path] = replace(before, rows=own)
                continue
            spare = union([*own.values(), *([] if before is None else [before.spare])], self._room)
            weights = {
                name.rpartition(".")[2]: row.targets[name].weight
                for row in rows.values()
                for name in row.units.get(path, {}).values()
            }
            program = self._programs.program(module, call, spare, weights, captured, exclusive=True)
            found[path] = RowProgram(program, own, spare)
        return found

    def _fits(self, program: LayerProgram, given: Given) -> bool:
        return places(program, given, self._room) is not None

    def _given(self, path: str, row: "Row") -> Given:
        names = row.units[path]
        for name in names.values():
            refuse_unservable(name, row.binding.targets[name])
        return self._programs.given(names, row.binding)


def refuse_unservable(name: str, bound: Sequence[Bound]) -> None:
    """Raise Unsupported for adapters that act at strength 0, or on the same rows as one that is no sum."""
    for each in bound:
        if not each.adapter.inert(0.0):
            raise Unsupported(
                f"{name}: a {each.adapter.name} of the convention {each.adapter.convention!r} has an effect even at "
                "strength 0, and samples without it would have it too: use convention='interpolate'"
            )
        others = [other for other in bound if other is not each]
        beside = any(each.rows is None or other.rows is None or other.rows == each.rows for other in others)
        if beside and not each.adapter.additive:
            raise Unsupported(f"{name}: a {each.adapter.name} beside another adapter of its own set cannot be served")


def union(rows: Sequence[Given], room: Room) -> Given:
    """For each parameter, as many adapters of each form as any row has of it."""
    found: dict[str, list[Bound]] = {}
    for given in rows:
        for own, bound in given.items():
            have = found.setdefault(own, [])
            counted: dict[object, int] = {}
            for each in bound:
                form = form_key([each], room)
                counted[form] = counted.get(form, 0) + 1
                if counted[form] > sum(form_key([other], room) == form for other in have):
                    have.append(each)
    return found
