"""The names of the model that adapters are converted for: those of `like`, or without it the file's own names."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.binding.experts import rearranged
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.named import names_for
from lyc_fx.errors import BadAdapter
from lyc_fx.inspection.shapes import Like, Shapes, other_names_of
from lyc_fx.naming import PREFIXES, Names, Target
from lyc_fx.naming.names import module_of

_SHOWN = 5
_FLAT = {Target.lycoris, Target.nhwc, Target.kohya, Target.comfyui}
"""Conventions that can keep the names of LyCORIS and kohya as they are"""


def own_shapes(adapters: AdapterSet, target: Target) -> Mapping[str, tuple[int, ...]] | None:
    """Return the names and shapes of the file's modules as those of a model; None if the target keeps their names.

    Raises BadAdapter if the model's names or shapes cannot be derived from the file.
    """
    flat = [entry.module for entry in adapters.entries if "." not in entry.module]
    shapes = {f"{e.module}.{e.leaf}": e.adapter.weight_shape() for e in adapters.entries}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if not flat and len(known) == len(shapes):
        return known
    kohya = [m for m in flat if any(m.startswith(f"{prefix}_") for prefix in PREFIXES if prefix != "lycoris")]
    if len(flat) == len(adapters.entries) and target in _FLAT and (target is not Target.kohya or kohya == flat):
        return None
    example = ", ".join([*flat, *(set(shapes) - set(known))][:_SHOWN])
    raise BadAdapter(
        f"{adapters.source}: {example}: the model's own names and shapes cannot be derived from these; give the model "
        "that they are for, or a checkpoint of it: like=… (command line: --like FILE)"
    )


def use_model_names(adapters: AdapterSet, shapes: Shapes, like: Like) -> AdapterSet:
    """Bring adapters that match no parameter in `shapes` to the names and form that the model has.

    Names that differ between class and disk become those of `shapes`; experts are split or fused.
    """
    names = names_for(adapters.entries, shapes, elsewhere=partial(other_names_of, like))
    weights = {name: Weight(shape, torch.float32) for name, shape in shapes.items()}
    own = Names(shapes)
    found = (_named(entry, own, names) for entry in rearranged(adapters.entries, names, weights))
    return replace(adapters, entries=tuple(found))


def _named(entry: Entry, own: Names, names: Names) -> Entry:
    found = names.find(entry.module, entry.leaf)
    if own.find(entry.module, entry.leaf) or len(found) != 1 or len(found[0]) != 1 or found[0][0].rows is not None:
        return entry
    parameter = found[0][0].parameter
    module = module_of(parameter, entry.leaf)
    return replace(entry, module=parameter if module is None else module)
