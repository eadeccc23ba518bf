"""`coverage`: for each key of adapter files what it changes or why not, and for each weight of a model whether it is
adapted. Nothing is changed and no weight is read."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any, final

import torch
from torch import nn

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.binding.chosen import Adapters, chosen
from lyc_fx.binding.experts import rearranged
from lyc_fx.binding.fitting import Weight, placed
from lyc_fx.binding.named import names_for
from lyc_fx.binding.report import table
from lyc_fx.binding.stack import stacked
from lyc_fx.checkpoint.base import open_base
from lyc_fx.checkpoint.new_tensors import NewTensor, find_new_tensors
from lyc_fx.errors import BadAdapter
from lyc_fx.inspection.shapes import Like, Shapes, other_names_of, shapes_of
from lyc_fx.naming import Names, Piece


@final
@dataclass(frozen=True)
class Key:
    """One key of an adapter file, and what it changes."""

    key: str
    source: str
    module: str
    """The file's name for the module; empty if no format reads the key"""
    targets: tuple[str, ...]
    """The weights that it changes: `fc.weight`, or `qkv.weight[0:64]` for some rows"""
    why: str | None = None
    """Why it changes nothing; None if it does change something"""


@final
@dataclass(frozen=True)
class Target:
    """One weight of the model, and what changes it."""

    name: str
    shape: tuple[int, ...]
    adapters: tuple[str, ...]
    """The files' names for the modules that change it"""


@final
@dataclass(frozen=True)
class Coverage:
    """Every key of the files, and every weight of the model; weights of fewer than two dimensions only if adapted."""

    keys: tuple[Key, ...]
    weights: tuple[Target, ...]

    @property
    def complete(self) -> bool:
        """Whether every key has an effect."""
        return all(key.why is None for key in self.keys)

    def __repr__(self) -> str:
        return f"<Coverage: {self._summary}>"

    @property
    def _summary(self) -> str:
        adapted, used = sum(bool(w.adapters) for w in self.weights), sum(key.why is None for key in self.keys)
        return f"{adapted} of {len(self.weights)} weights adapted; {used} of {len(self.keys)} keys used"

    def to_dict(self) -> dict[str, Any]:
        """Return the coverage as JSON-ready data."""
        return asdict(self) | {"complete": self.complete}

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from table(
            [
                {"weight": w.name, "shape": "×".join(map(str, w.shape)), "adapted by": ", ".join(w.adapters) or "-"}
                for w in self.weights
            ]
        )
        yield self._summary
        for why, keys in _by_reason(self.keys).items():
            yield f"not used, {why}:"
            yield from (f"  {key}" for key in keys)


def _by_reason(keys: Sequence[Key]) -> Mapping[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        if key.why is not None:
            found[key.why].append(key.key)
    return found


def coverage(adapters: Adapters, model: Like) -> Coverage:
    """Find out which keys of adapter files would change which weights of a model, without changing anything.

    `adapters` is as in `splice`; strengths are ignored. `model` is a module, a file or folder of its weights, or a
    mapping from parameter names to shapes. Raises BadFile if the model cannot be read.
    """
    sets = [each for each, _ in chosen(adapters)]
    elsewhere = cache(partial(other_names_of, model))
    shapes = shapes_of(model)
    shapes |= {name: each.shape for name, each in _new_tensors(sets, model, shapes, elsewhere).items()}
    weights = {name: Weight(shape, torch.float32) for name, shape in shapes.items()}
    names = names_for([entry for each in sets for entry in each.entries], shapes, elsewhere=elsewhere)
    keys: list[Key] = []
    changed: dict[str, dict[str, None]] = defaultdict(dict)
    for each in sets:
        taken: dict[str, list[tuple[Piece, Entry]]] = defaultdict(list)
        found: dict[str, Key] = {}
        for entry in rearranged(each.entries, names, weights):
            pieces, why = _pieces(entry, names, weights, taken)
            for key in entry.keys:  # a key for fused experts belongs to several entries
                before = found[key].targets if key in found else ()
                targets = tuple(dict.fromkeys((*before, *map(_format_piece, pieces))))
                found[key] = Key(key, each.source, entry.module, targets, why)
            for piece in pieces:
                taken[piece.parameter].append((piece, entry))
                changed[piece.parameter][entry.module] = None
        keys += [*found.values(), *(Key(key, each.source, "", (), "no format reads it") for key in each.unread)]
    rows = [
        Target(name, shape, tuple(changed.get(name, ())))
        for name, shape in shapes.items()
        if len(shape) > 1 or name in changed
    ]
    return Coverage(tuple(keys), tuple(rows))


def _new_tensors(
    sets: Sequence[AdapterSet], model: Like, shapes: Shapes, elsewhere: Callable[[], Mapping[str, str]]
) -> Mapping[str, NewTensor]:
    """Return the tensors that a fold into a folder would write as the adapter file has them, by name."""
    if isinstance(model, (Mapping, nn.Module)):
        return {}
    weights = {name: Weight(shape, torch.float32) for name, shape in shapes.items()}
    return find_new_tensors(stacked(sets), open_base(model), weights, elsewhere)


def _format_piece(piece: Piece) -> str:
    return piece.parameter + ("[{}:{}]".format(*piece.rows) if piece.rows else "")


def _pieces(
    entry: Entry, names: Names, weights: Mapping[str, Weight], taken: Mapping[str, list[tuple[Piece, Entry]]]
) -> tuple[list[Piece], str | None]:
    """Return the pieces that an entry changes, and None; or no pieces, and the reason."""
    found = names.find(entry.module, entry.leaf)
    if not found:
        near = names.nearest(entry.module, entry.leaf, 1)
        return [], f"no such {entry.leaf} in the model" + (f" (nearest to {entry.module}: {near[0]})" if near else "")
    try:
        return [piece for piece, _ in placed(entry, found, taken, weights)], None
    except BadAdapter as error:
        return [], f"{entry.module}: {error}"
