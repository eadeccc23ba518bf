"""From a file's adapters to the names that the target convention has for what they change."""

from collections import defaultdict
from dataclasses import dataclass
from typing import final

import torch

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.convert.fuse import Part, fused
from lyc_fx.errors import BadAdapter, counted
from lyc_fx.families import Adapter
from lyc_fx.fitting import Weight, placed
from lyc_fx.naming import Name, Piece, Written

_SHOWN = 20


@final
@dataclass(frozen=True)
class Made:
    """An adapter under a name of the target."""

    module: str
    leaf: str
    adapter: Adapter
    shape: tuple[int, ...]
    """Of the weight that the name stands for"""
    sources: tuple[str, ...]
    """The file's names of the modules that it was made of"""
    how: tuple[str, ...] = ()
    """`split`, `fused`, `low rank` (exact), `svd`; empty: carried over as it is"""
    error: float | None = None
    """Of an approximation: `‖ΔW - ΔW'‖ / ‖ΔW‖`"""


@final
@dataclass
class _Gathering:
    """What has been named so far, and what is wrong."""

    written: Written
    taken: dict[str, list[tuple[Piece, Entry]]]
    made: list[Made]
    scattered: dict[tuple[Name, str], list[tuple[Part, Entry]]]


def gathered(adapters: AdapterSet, written: Written) -> list[Made]:
    """Every name of the target that these adapters change, with its adapter.

    An adapter whose rows have a name of their own is carried over; else it is split, and what lies within one name
    is fused. Raises BadAdapter, listing every adapter that finds no parameter, does not fit, or can be neither.
    """
    state = _Gathering(written, defaultdict(list), [], defaultdict(list))
    weights = {name: Weight(shape, torch.float32) for name, shape in written.shapes.items()}
    faults = []
    for entry in adapters.entries:
        try:
            _place(entry, state, weights)
        except BadAdapter as error:
            faults.append(f"  {entry.module}: {error}")
    for (name, leaf), parts in state.scattered.items():
        sources = tuple(dict.fromkeys(entry.module for _, entry in parts))
        try:
            state.made.append(_joined(name, leaf, [part for part, _ in parts], sources, written))
        except BadAdapter as error:
            faults.append(f"  {', '.join(sources)}: {error}")
    if faults:
        more = [f"  … and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else []
        what = f"{adapters.source}: {counted(len(faults), 'adapter')} cannot be converted:"
        raise BadAdapter("\n".join([what, *faults[:_SHOWN], *more]))
    return state.made


def _place(entry: Entry, state: _Gathering, weights: dict[str, Weight]) -> None:
    written = state.written
    found = written.names.find(entry.module, entry.leaf)
    if not found:
        near = ", ".join(written.names.nearest(entry.module, entry.leaf)) or "none"
        raise BadAdapter(f"no such {entry.leaf} in the model; nearest: {near}")
    exact = written.exact(found[0], entry.leaf) if len(found) == 1 else None
    if exact is not None:
        shape = written.shape(exact)
        oriented = entry.adapter.oriented(shape, False)
        oriented.fit(shape)
        state.made.append(Made(written.module(exact, entry.module), entry.leaf, oriented, shape, (entry.module,)))
        return
    for piece, adapter in placed(entry, found, state.taken, weights):
        state.taken[piece.parameter].append((piece, entry))
        height = piece.rows[1] - piece.rows[0] if piece.rows else written.shapes[piece.parameter][0]
        for (start, stop), place in written.places(piece, entry.leaf):
            whole = (start, stop) == (0, height)
            part = (
                adapter
                if whole
                else adapter.rows(start, stop, (height, *written.shapes[piece.parameter][1:])).compact()
            )
            state.scattered[place.name, entry.leaf].append((Part(part, *place.rows), entry))


def _joined(name: Name, leaf: str, parts: list[Part], sources: tuple[str, ...], written: Written) -> Made:
    shape, first = written.shape(name), parts[0]
    module = written.module(name, sources[0])
    if len(parts) == 1 and (first.start, first.stop) == (0, shape[0]):
        return Made(module, leaf, first.adapter, shape, sources, ("split",))
    return Made(module, leaf, fused(parts, shape), shape, sources, ("fused",))
