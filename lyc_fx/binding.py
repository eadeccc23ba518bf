"""Where adapters meet weights: which adapter goes where, and every reason why one cannot. Used on all roads."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from types import MappingProxyType
from typing import Any, final

import torch

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.errors import BadAdapter
from lyc_fx.families import Adapter
from lyc_fx.names import PREFIXES, Names
from lyc_fx.report import Applied, Report

Stack = AdapterSet | Sequence[tuple[AdapterSet, float]]
"""One adapter set, or several with a strength each"""

_SHOWN = 20


@final
@dataclass(frozen=True)
class Weight:
    """What must be known of a weight to bind adapters to it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False
    """Stored `(in, out)`, as in Conv1D of GPT-2"""

    @property
    def logical(self) -> tuple[int, ...]:
        """The shape as adapters see it, `(out, in, *kernel)`."""
        return self.shape[::-1] if self.transposed else self.shape


@final
@dataclass(frozen=True)
class Bound:
    """One adapter of one set, bound to a weight."""

    adapter: Adapter
    index: int
    """Which set of the stack it comes from"""
    strength: float


@final
@dataclass(frozen=True)
class Binding:
    """Adapters by the model's weight names, in the order in which they are summed."""

    targets: Mapping[str, tuple[Bound, ...]]
    report: Report


def normalized(adapters: Stack, strength: float) -> tuple[tuple[AdapterSet, float], ...]:
    """Every form in which a stack may be given, as pairs in the order given. `strength` multiplies them all."""
    pairs: list[tuple[Any, Any]] = [(adapters, 1.0)] if isinstance(adapters, AdapterSet) else list(adapters)
    for pair in pairs:
        if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], AdapterSet)):
            raise TypeError("adapters must be what lyc_fx.load returns, or a list of (adapters, strength) pairs")
    stack = tuple((each, float(factor) * float(strength)) for each, factor in pairs)
    for each, factor in stack:
        if not isfinite(factor):
            raise BadAdapter(f"{each.source}: strength {factor} is not finite")
    return stack


def _summing_order(stack: Sequence[tuple[AdapterSet, float]]) -> list[int]:
    """By digest, so that the same adapters give the same bits in whatever order they come."""
    positions = list(range(len(stack)))
    return positions if len(stack) < 2 else sorted(positions, key=lambda i: (stack[i][0].digest, stack[i][1]))


def bind(
    stack: Sequence[tuple[AdapterSet, float]],
    weights: Mapping[str, Weight],
    *,
    strict: bool,
    aliases: Mapping[str, str] = MappingProxyType({}),
) -> Binding:
    """Bind every entry of every set. Raises BadAdapter, listing all that is wrong, before anything is done.

    `aliases` maps further names of a weight to the one in `weights`.

    With `strict=False`, entries without a weight become `unused` in the report; one that does not fit its
    weight is an error all the same.
    """
    names = Names(weights, aliases)
    targets: dict[str, list[Bound]] = defaultdict(list)
    applied: list[Applied] = []
    unused: list[str] = []
    lost: list[tuple[AdapterSet, Entry]] = []
    faults: list[str] = []
    for index in _summing_order(stack):
        adapters, strength = stack[index]
        unused += adapters.unread
        taken: dict[str, Entry] = {}
        for entry in adapters.entries:
            found = names.find(entry.module, entry.leaf)
            if not found:
                lost.append((adapters, entry))
                unused += entry.keys
                continue
            target, adapter = found[0], entry.adapter
            fault = _fault(entry, found, taken.get(target), weights[target])
            if fault is not None:
                faults.append(f"  {adapters.source}: {entry.module}: {fault}")
                continue
            taken[target] = entry
            targets[target].append(Bound(adapter, index, strength))
            applied.append(
                Applied(
                    target,
                    entry.module,
                    adapters.source,
                    adapter.name,
                    adapter.variant,
                    adapter.rank,
                    adapter.alpha,
                    adapter.scale,
                    strength,
                    weights[target].shape,
                )
            )
    if strict:
        faults += [f"  {a.source}: {key}: no format reads this key" for a, _ in stack for key in a.unread]
        faults += _unmatched(lost, names)
    if faults:
        advice = "" if not (lost and strict) else f"\n{_advice(lost, [row.module for row in applied])}"
        raise BadAdapter("\n".join([f"{len(faults)} adapters cannot be applied:", *_shorten(faults)]) + advice)
    return Binding({name: tuple(bound) for name, bound in targets.items()}, Report(tuple(applied), tuple(unused)))


def _fault(entry: Entry, found: list[str], rival: Entry | None, weight: Weight) -> str | None:
    if len(found) > 1:
        return f"the name is ambiguous, it may mean {' or '.join(found)}; rename the key to the dotted path"
    if rival is not None:
        return f"{found[0]} is named twice in this file, also by {rival.module}"
    if not weight.dtype.is_floating_point:
        return f"{found[0]} is stored as {weight.dtype}; adapters need a floating-point weight"
    try:
        entry.adapter.fit(weight.logical)
    except BadAdapter as error:
        return f"does not fit {found[0]} {weight.logical}: {error}"
    return None


def _unmatched(lost: Sequence[tuple[AdapterSet, Entry]], names: Names) -> list[str]:
    lines = []
    for position, (adapters, entry) in enumerate(lost):
        near = names.nearest(entry.module, entry.leaf) if position < _SHOWN else []
        hint = f"; nearest: {', '.join(near)}" if near else ""
        lines.append(f"  {adapters.source}: {entry.module}: no such {entry.leaf} in the model{hint}")
    return lines


def _advice(lost: Sequence[tuple[AdapterSet, Entry]], matched: Sequence[str]) -> str:
    if not matched:
        return "None of the names is the model's: are these adapters for another model?"
    modules = [entry.module for _, entry in lost]
    for prefix in sorted(PREFIXES, key=len, reverse=True):
        own = all(module.startswith(f"{prefix}_") for module in modules)
        if own and not any(module.startswith(f"{prefix}_") for module in matched):
            return (
                f"All that found no weight begin with {prefix}_. If they are meant for another model, leave them "
                f'out: adapters.exclude("{prefix}_*") (command line: --exclude "{prefix}_*").'
            )
    return "strict=False (command line: --no-strict) applies the rest and lists these in the report."


def _shorten(lines: list[str]) -> list[str]:
    more = len(lines) - _SHOWN
    return lines if more <= 0 else [*lines[:_SHOWN], f"  … and {more} more"]
