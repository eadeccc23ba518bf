"""The programs of a model's layers, each made once for all layers that are alike."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import final

from torch import nn
from torch.fx import GraphModule

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.calls import LayerCall, layer_call
from lyc_fx.attaching.forwards import place_of
from lyc_fx.attaching.layer import Given, Layer, form_key, numbered, places
from lyc_fx.attaching.layer_program import How, LayerProgram, captured_layer, layer_key
from lyc_fx.attaching.quantized import beside, dequantized, plain
from lyc_fx.attaching.units import Units
from lyc_fx.base.quantizers import quantized
from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.report import Report
from lyc_fx.errors import BadAdapter
from lyc_fx.graph.places import Filled
from lyc_fx.model.weight_handle import WeightHandle


@final
class Programs:
    """Of one model with attached adapters."""

    def __init__(self, room: Room, how: How) -> None:
        self._room, self._how = room, how
        self._programs: dict[Hashable, LayerProgram] = {}

    def filled(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer],
        chosen: Units,
        binding: Binding,
        targets: Mapping[str, WeightHandle],
    ) -> dict[str, tuple[LayerProgram, list[Filled]]]:
        """The program of each layer that has one, and what to put into its places. Raises as `Attached.set`."""
        captured: dict[Hashable, GraphModule] = {}
        found = {}
        for path, names in chosen.items():
            module, layer = model.get_submodule(path), layers.get(path)
            if layer is None:
                place_of(module)
            if (call := layer_call(plain(module))) is None:
                continue
            given = self.given(names, binding)
            fitting = layer and self.fitting(layer, given, sequential=binding.sequential)
            if fitting is None:
                weights = {own: targets[name].weight for own, name in names.items()}
                program = self.program(module, call, given, weights, captured, sequential=binding.sequential)
                filled = places(program, given, self._room, sequential=binding.sequential)
                assert filled is not None
                fitting = program, filled
            found[path] = fitting
        return found

    def fitting(self, layer: Layer, given: Given, *, sequential: bool) -> tuple[LayerProgram, list[Filled]] | None:
        """The program that a layer has, and what to put into its places; None if it is for other adapters."""
        if layer.program is None or not layer.is_at_home:
            return None
        filled = places(layer.program, given, self._room, sequential=sequential)
        return None if filled is None else (layer.program, filled)

    def given(self, names: Mapping[str, str], binding: Binding) -> Given:
        """The adapters of one module by its parameters."""
        given: dict[str, list[Bound]] = {}
        for own, name in names.items():
            for bound in binding.targets[name]:
                try:
                    adapter = self._room.padded(bound.adapter)
                except BadAdapter as error:
                    raise BadAdapter(f"{name}: {error}: attach with rank={bound.adapter.rank}") from error
                given.setdefault(own, []).append(replace(bound, adapter=adapter))
        return given

    def program(
        self,
        module: nn.Module,
        call: LayerCall,
        given: Given,
        weights: Mapping[str, Weight],
        captured: dict[Hashable, GraphModule],
        *,
        sequential: bool = False,
    ) -> LayerProgram:
        """The program of a layer with such adapters. `captured`: what layers that are alike are without adapters."""
        alike = layer_key(module)
        key = alike, sequential, tuple((n, weights[n], form_key(each, self._room)) for n, each in given.items())
        if key not in self._programs:
            if alike not in captured:
                captured[alike] = captured_layer(dequantized(module), call)
            binding = Binding(numbered(given), Report(()), sequential)
            held = quantized(module)
            made = LayerProgram.of(
                captured[alike],
                call,
                binding,
                weights,
                self._room,
                self._how,
                call.options(module),
                always=held is not None,
            )
            self._programs[key] = made if held is None else beside(made, held)
        return self._programs[key]
