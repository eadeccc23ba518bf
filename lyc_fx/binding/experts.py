"""Converting adapters for experts between fused parameters and separate modules.

The classes of transformers 5 have all experts in two parameters: `experts.gate_up_proj (experts, 2·inner, width)`, with
the rows of gate before those of up, and `experts.down_proj (experts, width, inner)`. On disk, and in older versions,
each expert has three layers. An adapter for one form can be converted to the other exactly.
"""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.algorithms.experts import Experts
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.fitting import Weight
from lyc_fx.naming import Names

_PARTS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
"""The fused parameters, each with the layers whose rows it holds, in order"""
_SPELLINGS = (
    {"gate_proj": "gate_proj", "up_proj": "up_proj", "down_proj": "down_proj"},
    {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
)
"""The names of those layers: in Qwen and DeepSeek, and in Mixtral"""
_OWNERS = ("mlp.experts", "block_sparse_moe.experts", "feed_forward.experts", "experts")
_FUSED = re.compile(rf"(.*?)({'|'.join(map(re.escape, _OWNERS))})\.(gate_up_proj|down_proj)")
_APART = re.compile(rf"(.*?)({'|'.join(map(re.escape, _OWNERS))})\.(\d+)\.(gate_proj|up_proj|down_proj|w1|w2|w3)")


def rearranged(entries: Sequence[Entry], names: Names, weights: Mapping[str, Weight]) -> list[Entry]:
    """Return the entries, with those for experts that match no weight converted to the form that the model has."""
    lost = {id(entry) for entry in entries if not names.find(entry.module, entry.leaf)}
    if not lost:
        return list(entries)
    kept: list[Entry] = []
    for entry in entries:
        kept += (_apart(entry, names, weights) or [entry]) if id(entry) in lost else [entry]
    return _together(kept, names, weights)


def _apart(entry: Entry, names: Names, weights: Mapping[str, Weight]) -> list[Entry]:
    """Split an adapter for a fused parameter into one per layer. Empty if the model has no such layers."""
    match = _FUSED.fullmatch(entry.module)
    if match is None or not isinstance(entry.adapter, Experts):
        return []
    head, _, fused = match.groups()
    up, down, parts = entry.adapter.up, entry.adapter.down, _PARTS[fused]
    for owner in _OWNERS:
        for spelling in _SPELLINGS:
            stems = [f"{head}{owner}.{{}}.{spelling[part]}" for part in parts]
            found = names.find(stems[0].format(0), "weight")
            if not found:
                continue
            if names.find(stems[0].format(up.shape[0]), "weight"):
                return []  # the model has more experts than the adapter
            height = weights[found[0][0].parameter].logical[0]
            if up.shape[1] != height * len(parts):  # stored (experts, in, out)
                up, down = down.transpose(1, 2), up.transpose(1, 2)
            return [
                replace(
                    entry, module=stem.format(e), adapter=_layer(entry, up[e, i * height : (i + 1) * height], down[e])
                )
                for e in range(up.shape[0])
                for i, stem in enumerate(stems)
            ]
    return []


def _layer(entry: Entry, up: Tensor, down: Tensor) -> LoCon:
    return LoCon(
        up=up.contiguous(), down=down.contiguous(), alpha=entry.adapter.alpha, convention=entry.adapter.convention
    )


def _together(entries: Sequence[Entry], names: Names, weights: Mapping[str, Weight]) -> list[Entry]:
    """Join adapters for the layers of experts into one per fused parameter, where the model has those."""
    kept: list[Entry] = []
    groups: dict[tuple[str, str], list[tuple[int, int, Entry]]] = defaultdict(list)
    for entry in entries:
        target = _fused_home(entry, names)
        if target is None:
            kept.append(entry)
        else:
            parameter, expert, part = target
            groups[parameter, entry.leaf].append((expert, part, entry))
    for (parameter, _), members in groups.items():
        shape = weights[parameter].logical
        fused = _joined(parameter.rpartition(".")[2], shape, members)
        first = members[0][2]
        keys = tuple(key for _, _, each in members for key in each.keys)
        kept.append(replace(first, module=parameter, adapter=fused, keys=keys) if fused else first)
        kept += [] if fused else [each for _, _, each in members[1:]]
    return kept


def _fused_home(entry: Entry, names: Names) -> tuple[str, int, int] | None:
    """Return the model's fused parameter that holds a layer, the expert's number, and the part's; None without one."""
    match = _APART.fullmatch(entry.module)
    adapter = entry.adapter
    plain = isinstance(adapter, LoCon) and set(adapter.factors()) == {"up", "down"}
    if match is None or not plain or names.find(entry.module, entry.leaf):
        return None
    head, _, expert, layer = match.groups()
    part = next(name for spelling in _SPELLINGS for name, own in spelling.items() if own == layer)
    fused = next(name for name, parts in _PARTS.items() if part in parts)
    for owner in _OWNERS:
        found = names.find(f"{head}{owner}.{fused}", "weight")
        if found:
            return found[0][0].parameter, int(expert), _PARTS[fused].index(part)
    return None


def _joined(fused: str, shape: Sequence[int], members: Sequence[tuple[int, int, Entry]]) -> Experts | None:
    """Join layers' adapters into one for a fused parameter: up `(experts, out, rank)`, down `(experts, rank, in)`.

    Each part (gate, up) has its own range of the rank, and the scales are multiplied into `up`. None if the layers do
    not fit the parameter.
    """
    parts, convention = len(_PARTS[fused]), members[0][2].adapter.convention
    ranks = [max((_rank(e) for _, p, e in members if p == part), default=0) for part in range(parts)]
    if len(shape) != 3 or shape[1] % parts:
        return None
    height, total = shape[1] // parts, sum(ranks)
    up = torch.zeros(shape[0], shape[1], total, dtype=torch.float64)
    down = torch.zeros(shape[0], total, shape[2], dtype=torch.float64)
    for expert, part, entry in members:
        adapter = entry.adapter
        assert isinstance(adapter, LoCon)
        own, rank, start = (adapter.up.double(), adapter.down.double()), _rank(entry), sum(ranks[:part])
        if expert >= shape[0] or own[0].shape != (height, rank) or own[1].shape != (rank, shape[2]):
            return None
        up[expert, part * height : (part + 1) * height, start : start + rank] = own[0] * adapter.scale
        down[expert, start : start + rank] = own[1]
    return Experts(up=up, down=down, alpha=float(total), convention=convention)


def _rank(entry: Entry) -> int:
    return entry.adapter.rank or 0
