"""The rows of the banks of a model's layers: one for each set of adapters, and the first for none."""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

from torch import Tensor, nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.batched import Picks
from lyc_fx.attaching.layer import Layer
from lyc_fx.attaching.row_programs import RowProgram, RowPrograms
from lyc_fx.attaching.units import Units, named
from lyc_fx.binding.bound import Binding
from lyc_fx.merging.blockwise import threaded_scheduler
from lyc_fx.model.weight_handles import WeightHandle


@final
@dataclass(frozen=True)
class Row:
    """One set of adapters."""

    binding: Binding
    targets: Mapping[str, WeightHandle]
    units: Units


@final
class Rows:
    """Of one model."""

    def __init__(self, model: nn.Module, room: Room, picks: Picks) -> None:
        self._model, self._room, self._picks = model, room, picks
        self._programs = RowPrograms(model, room)
        self._layers: dict[str, Layer] = {}
        self._running: dict[str, RowProgram] = {}

    def put(self, rows: Mapping[int, Row], changed: Collection[int]) -> None:
        """Fill the changed rows, and all rows of layers that get another program. After an error all is as before."""
        stay = {path: each for path, each in self._running.items() if self._stays(path)}
        prepared = self._programs.prepared(rows, stay)
        fresh: dict[str, Layer] = {}
        with ExitStack() as undo:
            for path, each in prepared.items():
                with named(path):
                    if path in stay and stay[path].program is each.program:
                        for row in changed:
                            self._overwrite(self._layers[path], each, row, undo)
                    else:
                        fresh[path] = self._filled(path, each)
            merged = self._merged(rows, prepared)
            undo.pop_all()
        for path, layer in fresh.items():
            self._replace(path, layer)
        for path, values in merged.items():
            self._substitute(path, values)
        self._running |= prepared

    def detach(self) -> None:
        """Give every module its own forward back."""
        for layer in self._layers.values():
            layer.detach()
        self._layers.clear()
        self._running.clear()

    def _stays(self, path: str) -> bool:
        """Whether the module is the one that has the layer, with the same dtype and device as then."""
        layer = self._layers[path]
        return layer.is_at_home and layer.module is self._model.get_submodule(path)

    def _filled(self, path: str, each: RowProgram) -> Layer:
        """A layer with values in all rows, which is not installed."""
        layer = Layer.chained_each(self._model.get_submodule(path), each.program, self._picks)
        for row in range(self._picks.rows):
            layer.fill(each.filled(row, self._room), self._room, row=row)
        return layer

    def _overwrite(self, layer: Layer, each: RowProgram, row: int, undo: ExitStack) -> None:
        for name in each.program.bank:
            held = layer.bank.read(name)[row]
            undo.callback(held.copy_, held.clone())
        layer.fill(each.filled(row, self._room), self._room, row=row)

    def _replace(self, path: str, layer: Layer) -> None:
        old = self._layers.pop(path, None)
        if old is not None:
            old.detach()
        self._layers[path] = layer.installed()

    def _substitute(self, path: str, values: Mapping[str, Tensor]) -> None:
        layer = self._layers.get(path)
        if layer is None or layer.values.keys() != values.keys():
            self._replace(path, Layer.substituted(self._model.get_submodule(path), values, self._picks))
            return
        for name, tensor in layer.values.items():
            tensor.copy_(values[name])

    def _merged(self, rows: Mapping[int, Row], chained: Collection[str]) -> dict[str, dict[str, Tensor]]:
        """The weights of modules without a program, stacked by row: merged ones, and else the base."""
        wanted = [(path, own) for path, layer in self._layers.items() for own in layer.merged]
        wanted += [(path, own) for row in rows.values() for path, names in row.units.items() for own in names]
        found: dict[str, dict[str, Tensor]] = {}
        for path, own in wanted:
            if path not in chained:
                base = getattr(self._model.get_submodule(path), own).detach()
                found.setdefault(path, {})[own] = base.expand(self._picks.rows, *base.shape).clone()
        with threaded_scheduler() as scheduler:
            for position, row in rows.items():
                for path in row.units.keys() & found.keys():
                    for own, name in row.units[path].items():
                        handle, out = row.targets[name], found[path][own][position]
                        row.binding.fill(name, handle.read(), out, scheduler, transposed=handle.transposed, effects={})
            scheduler.finish()
        return found
