"""What is said of adapters beside layers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace

from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.model.weight_handle import WeightHandle


def with_notes(binding: Binding, targets: Mapping[str, WeightHandle]) -> Report:
    """The report of a binding, with notes on weights that do not look like the adapters' base, and on tied ones."""
    notes = [
        note
        for name, handle in targets.items()
        for note in binding.doubts(name, handle.read(), transposed=handle.transposed)
    ]
    return replace(binding.report, notes=(*binding.report.notes, *notes, *ties(targets)))


def ties(targets: Mapping[str, WeightHandle]) -> Iterator[str]:
    """Notes on weights that have other names too."""
    for name, handle in targets.items():
        if handle.obstacle is not None and handle.obstacle.startswith("is tied"):
            yield f"{name} {handle.obstacle}: its adapters act where {name.rpartition('.')[0]} itself is called"
