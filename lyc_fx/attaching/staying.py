"""Choices of adapters for which every layer stays what it is: the same programs, and no layer more or fewer."""

from collections.abc import Mapping
from dataclasses import replace

from lyc_fx.attaching.attached_layers import Layers
from lyc_fx.attaching.chosen import Chosen
from lyc_fx.attaching.programs import Programs
from lyc_fx.attaching.units import Units
from lyc_fx.binding.bound import Binding
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.model.weight_handle import WeightHandle


def staying(
    layers: Layers,
    programs: Programs,
    chosen: Units,
    binding: Binding,
    weights: Mapping[str, WeightHandle],
    sets: int,
) -> Chosen:
    """The choice that names every layer, those too that get nothing.

    Raises BadAdapter for adapters without a place in the layers as they are, and for a layer that cannot be left
    without; Unsupported for layers that have been moved or replaced.
    """
    _refuse_moved(layers)
    for path, names in chosen.items():
        if path not in layers.by_path:
            raise BadAdapter(f"{next(iter(names.values()))}: no adapter is attached there: {_ADVICE}")
    filled, substituted = {}, {}
    for path, layer in layers.by_path.items():
        names = chosen.get(path, {})
        if layer.program is None:
            every = {own: f"{path}.{own}" if path else own for own in layer.merged}
            if not names.keys() <= every.keys():
                raise BadAdapter(f"{path}: adapters are attached to {', '.join(every)} alone: {_ADVICE}")
            substituted[path] = every
        elif names:
            fitting = programs.fitting(layer, programs.given(names, binding), sequential=binding.sequential)
            if fitting is None:
                name = next(iter(names.values()))
                raise BadAdapter(f"{name}: adapters of another form are attached there: {_ADVICE}")
            filled[path] = fitting
        elif layer.can_idle:
            filled[path] = layer.program, [(term, None) for term in layer.terms]
        else:
            raise BadAdapter(f"{path}: what is attached there has an effect even at strength 0: give an adapter for it")
    read = {name: weights[name] for names in substituted.values() for name in names.values()}
    binding = replace(binding, targets={name: binding.targets.get(name, ()) for name in read})
    return Chosen(sets, binding, read, filled, substituted)


_ADVICE = "set() them once beside those that they take turns with, at strength 0, and prepare() all after that"


def _refuse_moved(layers: Layers) -> None:
    replaced = list(layers.replaced())
    moved = [path for path, layer in layers.by_path.items() if layer.program is not None and not layer.is_at_home]
    for path in (*replaced, *moved):
        raise Unsupported(f"{path} has been replaced, or has another dtype or device than at the last set(): call it")
