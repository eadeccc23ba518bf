"""Adapters of which all is computed that a change of attached adapters needs, so that the change is copies alone."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Self, final

from torch import Tensor

from lyc_fx.attaching.attached_layers import Layers
from lyc_fx.attaching.bank import leaf
from lyc_fx.attaching.chosen import Chosen
from lyc_fx.attaching.flat import memory_of, part_of, wholes
from lyc_fx.attaching.layer import Layer, fill_bank
from lyc_fx.attaching.unchanged import Unchanged
from lyc_fx.attaching.units import named
from lyc_fx.binding.report import Report
from lyc_fx.errors import WrongArgument
from lyc_fx.graph.places import Filled


@final
@dataclass(frozen=True, eq=False)
class Prepared:
    """What `Attached.prepare` returns and `Attached.swap` takes: adapters, bound, padded and computed for a model.

    It holds as much memory as all adapted layers hold beside their weights.
    """

    report: Report
    """What was bound where"""
    chosen: Chosen = field(repr=False)
    layers: Mapping[str, Layer] = field(repr=False)
    copies: Sequence[tuple[Tensor, Tensor]] = field(repr=False)
    """The memory of the layers' tensors, one for each dtype and device as a rule, and the values for it"""
    unchanged: Unchanged = field(repr=False)

    @classmethod
    def of(cls, layers: Layers, chosen: Chosen, report: Report) -> Self:
        """For a choice that names every layer. Raises BadAdapter for a merged weight that overflows."""
        held = {
            (path, name): table[name] for path, layer in layers.by_path.items() for table, name in layer.bank.places
        }
        memory = wholes(held.values())
        values = {each: whole.clone() for each, whole in memory.items()}
        parts: dict[str, dict[str, Tensor]] = defaultdict(dict)
        for (path, name), tensor in held.items():
            parts[path][name] = part_of(values[memory_of(tensor)], tensor)
        filled = {}
        for path, (program, each) in chosen.filled.items():
            own = parts[path]
            with named(path):
                fill_bank(program, layers.by_path[path].module, partial(_read, own), each, layers.room)
            filled[path] = program, [_holding(place, own) for place in each]
        for path, merged in layers.merged(chosen).items():
            for name, value in merged.items():
                parts[path][leaf(name)].copy_(value)
        unchanged = Unchanged.of(layers.model, layers.by_path)
        copies = [(memory[each], values[each]) for each in memory]
        return cls(report, replace(chosen, filled=filled), dict(layers.by_path), copies, unchanged)

    def put(self, layers: Layers) -> None:
        """Copy the values into the layers. Raises WrongArgument if they are not those of these layers any more."""
        if self.layers != layers.by_path:
            raise WrongArgument(
                "these adapters were prepared for other layers, of another model or from before a set() that gave some "
                "layers other programs: prepare() them again"
            )
        if (change := self.unchanged.change()) is not None:
            raise WrongArgument(f"{change}: prepare() the adapters again, after set() if the model was moved")
        for memory, values in self.copies:
            memory.copy_(values)


def _read(values: Mapping[str, Tensor], name: str) -> Tensor:
    return values[leaf(name)]


def _holding(place: Filled, values: Mapping[str, Tensor]) -> Filled:
    """The same, of the tensors that hold the factors already."""
    term, bound = place
    if bound is None:
        return place
    factors = {each: _read(values, term.places[each]) for each in bound.adapter.factors()}
    return term, replace(bound, adapter=bound.adapter.with_factors(factors))
