"""Assigning a file's adapters to the target convention's names for the weights that they change."""

from collections import defaultdict
from dataclasses import dataclass
from typing import final

import torch

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.binding.fitting import Weight, placed
from lyc_fx.binding.part import part_of
from lyc_fx.conversion.fuse import Part, fuse
from lyc_fx.errors import BadAdapter, counted, listing
from lyc_fx.naming import Name, Piece, TargetNames


@final
@dataclass(frozen=True)
class ConvertedAdapter:
    """An adapter under a name of the target convention."""

    module: str
    leaf: str
    adapter: Adapter
    shape: tuple[int, ...]
    """The shape of the weight that the name means"""
    sources: tuple[str, ...]
    """The file's names for the modules that it was made from"""
    how: tuple[str, ...] = ()
    """The steps: `split`, `fused`, `low rank` (exact), `svd`; empty if the adapter is unchanged"""
    error: float | None = None
    """The error of an approximation, `‖ΔW - ΔW'‖ / ‖ΔW‖`"""


@final
@dataclass
class _Gathering:
    """The state while adapters are assigned to names."""

    target_names: TargetNames
    taken: dict[str, list[tuple[Piece, Entry]]]
    made: list[ConvertedAdapter]
    scattered: dict[tuple[Name, str], list[tuple[Part, Entry]]]
    """Parts of adapters by the target's name and leaf, to be fused"""


def gather(adapters: AdapterSet, target_names: TargetNames) -> list[ConvertedAdapter]:
    """Return an adapter for every name of the target convention that these adapters change.

    An adapter whose rows have a name of their own stays as it is. Any other is split by the target's names, and all
    parts within one name are fused. Raises BadAdapter, listing every adapter that matches no parameter, does not fit,
    or cannot be split or fused.
    """
    state = _Gathering(target_names, defaultdict(list), [], defaultdict(list))
    weights = {name: Weight(shape, torch.float32) for name, shape in target_names.shapes.items()}
    faults = []
    for entry in adapters.entries:
        try:
            _place(entry, state, weights)
        except BadAdapter as error:
            faults.append(f"  {entry.module}: {error}")
    for (name, leaf), parts in state.scattered.items():
        sources = tuple(dict.fromkeys(entry.module for _, entry in parts))
        try:
            state.made.append(_join(name, leaf, [part for part, _ in parts], sources, target_names))
        except BadAdapter as error:
            faults.append(f"  {', '.join(sources)}: {error}")
    if faults:
        what = f"{adapters.source}: {counted(len(faults), 'adapter')} cannot be converted:"
        raise BadAdapter(listing(what, faults))
    return state.made


def _place(entry: Entry, state: _Gathering, weights: dict[str, Weight]) -> None:
    target_names = state.target_names
    found = target_names.names.find(entry.module, entry.leaf)
    if not found:
        near = ", ".join(target_names.names.nearest(entry.module, entry.leaf)) or "none"
        raise BadAdapter(f"no such {entry.leaf} in the model; nearest: {near}")
    exact = target_names.exact(found[0], entry.leaf) if len(found) == 1 else None
    if exact is not None:
        shape = target_names.shape(exact)
        oriented = entry.adapter.oriented(shape, False)
        oriented.fit(shape)
        state.made.append(
            ConvertedAdapter(target_names.module(exact, entry.module), entry.leaf, oriented, shape, (entry.module,))
        )
        return
    for piece, adapter in placed(entry, found, state.taken, weights):
        state.taken[piece.parameter].append((piece, entry))
        height = piece.rows[1] - piece.rows[0] if piece.rows else target_names.shapes[piece.parameter][0]
        for (start, stop), place in target_names.places(piece, entry.leaf):
            rows = None if (start, stop) == (0, height) else (start, stop)
            cut = part_of(adapter, rows, (height, *target_names.shapes[piece.parameter][1:]))
            state.scattered[place.name, entry.leaf].append((Part(cut, *place.rows), entry))


def _join(
    name: Name, leaf: str, parts: list[Part], sources: tuple[str, ...], target_names: TargetNames
) -> ConvertedAdapter:
    shape, first = target_names.shape(name), parts[0]
    module = target_names.module(name, sources[0])
    if len(parts) == 1 and (first.start, first.stop) == (0, shape[0]):
        return ConvertedAdapter(module, leaf, first.adapter, shape, sources, ("split",))
    return ConvertedAdapter(module, leaf, fuse(parts, shape), shape, sources, ("fused",))
