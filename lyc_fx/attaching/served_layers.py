"""The layers of a model whose samples have adapters of their own."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.bank import NAME
from lyc_fx.attaching.batched import Banks, Batch, served
from lyc_fx.attaching.blended import Share
from lyc_fx.attaching.calls import layer_call
from lyc_fx.attaching.forms import Chained, Form, Substituted
from lyc_fx.attaching.forwards import Shell, install, place_of
from lyc_fx.attaching.layer import fill_bank, places
from lyc_fx.attaching.layer_program import layer_key
from lyc_fx.attaching.masks import Mask
from lyc_fx.attaching.programs import Programs
from lyc_fx.attaching.shelves import Read, Shelf, Shelves, Write, placed
from lyc_fx.attaching.units import WHOLE, Units, named
from lyc_fx.base.quantizers import quantized
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.errors import Unsupported
from lyc_fx.merging.blockwise import run_serially
from lyc_fx.model.weight_handle import WeightHandle


@final
@dataclass(frozen=True)
class AdapterRow:
    """One set, bound to a model."""

    binding: Binding
    targets: Mapping[str, WeightHandle]
    units: Units
    report: Report


@final
@dataclass(frozen=True)
class Layer:
    """A module that serves adapters."""

    module: nn.Module
    shelves: Shelves
    banks: Banks
    key: Hashable
    """`layer_key` when the banks were made"""
    detach: Callable[[], None]


@final
class Layers:
    """Of one model."""

    def __init__(self, model: nn.Module, room: Room) -> None:
        self._model, self._room, self._programs = model, room, Programs(room, "chained")
        self._layers: dict[str, Layer] = {}
        self._chained, self._substituted, self._forward = cache(Chained.of), cache(Substituted), cache(served)

    def put(self, sets: Mapping[str, AdapterRow], names: Sequence[str], spare: int) -> None:
        """Put the named of all sets into their places. After an error all is as before.

        `spare`: how many more rows a new bank has.
        """
        captured: dict[Hashable, GraphModule] = {}
        found: dict[str, Shelves] = {}
        paths = dict.fromkeys([*self._layers, *(path for name in names for path in sets[name].units)])
        with ExitStack() as undo:
            for path in paths:
                module, layer = self._model.get_submodule(path), self._layers.get(path)
                stays = layer is not None and layer.module is module and layer.key == layer_key(module)
                shelves: Shelves = layer.shelves if layer is not None and stays else ()
                if layer is None or layer.module is not module:
                    _refuse(path, module)
                for name in names if stays else sets:
                    shelves = tuple(shelf.without(name) if name in shelf.rows else shelf for shelf in shelves)
                    if path in sets[name].units:
                        with named(path):
                            shelves = self._with(shelves, path, name, sets[name], captured, spare, undo)
                found[path] = shelves
            undo.pop_all()
        for path, shelves in found.items():
            self._install(path, shelves)

    def remove(self, name: str) -> None:
        """Free the rows of a set."""
        for path, layer in self._layers.items():
            shelves = tuple(shelf.without(name) for shelf in layer.shelves)
            self._layers[path] = replace(layer, shelves=shelves)

    def choose(self, batches: Sequence[Sequence[str | None]]) -> None:
        """Let the n-th sample of a batch use the set of the n-th name, in batches of these numbers of samples."""
        known: dict[Hashable, list[Batch]] = {}
        self._refuse_moved()
        for layer in self._layers.values():
            device = next(layer.module.parameters()).device
            key = device, tuple(tuple(shelf.rows.items()) for shelf in layer.shelves)
            if key not in known:
                known[key] = [_batch(layer.shelves, names, device) for names in batches]
            layer.banks.picks.batches, layer.banks.picks.shares = known[key], None

    def blend(self, masks: Mapping[str, Mask]) -> None:
        """Let all samples use these sets, where and as far as their masks say."""
        known: dict[Hashable, list[Share]] = {}
        self._refuse_moved()
        for layer in self._layers.values():
            device = next(layer.module.parameters()).device
            key = device, tuple(tuple(shelf.rows.items()) for shelf in layer.shelves)
            if key not in known:
                known[key] = [
                    Share(position, torch.tensor([shelf.rows[name]], device=device), mask.to(device))
                    for name, mask in masks.items()
                    for position, shelf in enumerate(layer.shelves)
                    if name in shelf.rows
                ]
            layer.banks.picks.shares = known[key]

    def detach(self) -> None:
        """Give every module its own forward back."""
        for layer in self._layers.values():
            layer.detach()
        self._layers.clear()

    def _refuse_moved(self) -> None:
        """Raise Unsupported if a module has another dtype or device than its banks were made for."""
        for path, layer in self._layers.items():
            if layer.key != layer_key(layer.module):
                raise Unsupported(f"{path} has another dtype or device than when it was served: put() the sets again")

    def _with(
        self,
        shelves: Shelves,
        path: str,
        name: str,
        row: AdapterRow,
        captured: dict[Hashable, GraphModule],
        spare: int,
        undo: ExitStack,
    ) -> Shelves:
        """The shelves of a module with one set more."""
        module, own = self._model.get_submodule(path), row.units[path]
        device, call = next(module.parameters()).device, layer_call(module)
        if call is None:
            merged = self._merged(row, own)
            form = self._substituted(spatial=True, names=tuple(merged))
            write = partial(_copy, merged)
            make = partial(Shelf.empty, form, merged, 1 + spare, device)
            return placed(shelves, name, lambda found: write if found is form else None, make, spare, undo)
        given = self._programs.given(own, row.binding)
        weights = {leaf: row.targets[full].weight for leaf, full in own.items()}

        def write_to(form: Form) -> Write | None:
            if not isinstance(form, Chained):
                return None
            program, filled = form.program, places(form.program, given, self._room)
            if filled is None or any(bound is None for _, bound in filled):
                return None
            return lambda held: fill_bank(program, module, held, filled, self._room)

        def empty() -> Shelf:
            program = self._programs.program(module, call, given, weights, captured)
            return Shelf.empty(self._chained(program), program.bank, 1 + spare, device)

        return placed(shelves, name, write_to, empty, spare, undo)

    def _merged(self, row: AdapterRow, names: Mapping[str, str]) -> dict[str, Tensor]:
        found = {}
        for own, name in sorted(names.items()):
            handle = row.targets[name]
            found[own] = torch.empty_like(base := handle.read(), memory_format=torch.contiguous_format)
            row.binding.fill(name, base, found[own], run_serially, transposed=handle.transposed, effects={})
        return found

    def _install(self, path: str, shelves: Shelves) -> None:
        """Let a module serve these, with the forward that it has if it is for the same banks."""
        module, layer = self._model.get_submodule(path), self._layers.get(path)
        if layer is not None and layer.module is module:
            if [each.bank for each in layer.shelves] == [each.bank for each in shelves]:
                self._layers[path] = replace(layer, shelves=shelves)
                return
            layer.detach()
        for shelf in shelves:
            object.__setattr__(shelf.bank, "shell", Shell(module))  # no submodule: it would contain itself
        banks = Banks([shelf.bank for shelf in shelves])
        remove = install(module, self._forward(tuple(shelf.form for shelf in shelves)))
        module.add_module(NAME, banks)
        # torch.compile fixes the sizes of all tensors in torch's own layers, which it knows by this.
        module.__dict__["__module__"] = __name__

        def detach() -> None:
            remove()
            del module.__dict__["__module__"]
            delattr(module, NAME)

        self._layers[path] = Layer(module, shelves, banks, layer_key(module), detach)


def _refuse(path: str, module: nn.Module) -> None:
    """Raise Unsupported for a module that cannot serve adapters."""
    place_of(module)
    if isinstance(module, WHOLE) or quantized(module) is not None:
        kind = type(module).__name__ if isinstance(module, WHOLE) else f"quantized {type(module).__name__}"
        raise Unsupported(f"{path}: a {kind} cannot serve several adapters: use lyc_fx.attach")


def _copy(values: Mapping[str, Tensor], held: Read) -> None:
    for name, value in values.items():
        held(name).copy_(value)


def _batch(shelves: Shelves, names: Sequence[str | None], device: torch.device) -> Batch:
    picked = [shelf.picked(names) for shelf in shelves]
    few = [_padded(each, len(names), device) for each in picked]
    return Batch(torch.empty(len(names), device="meta"), few, [_spread(each, len(names), device) for each in picked])


def _padded(picked: list[list[int]], samples: int, device: torch.device) -> Tensor:
    """As `(2, n)` of a larger tensor, so that the strides do not depend on n, which a compiler takes as unknown."""
    found = torch.zeros(2, samples, dtype=torch.int64)
    found[:, : len(picked[0])] = torch.tensor(picked, dtype=torch.int64).reshape(2, -1)
    view = found.to(device)[:, : len(picked[0])]
    torch._dynamo.decorators.mark_unbacked(view, 1)
    return view


def _spread(picked: list[list[int]], samples: int, device: torch.device) -> Tensor:
    """As `(2, samples)`: 1 for those that are picked, else 0, and their rows."""
    found = torch.zeros(2, samples, dtype=torch.int64)
    found[0, picked[0]], found[1, picked[0]] = 1, torch.tensor(picked[1], dtype=torch.int64)
    return found.to(device)
