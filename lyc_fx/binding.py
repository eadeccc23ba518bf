"""Where adapters meet weights: which adapter goes where, and every reason why one cannot. Used on all roads."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.errors import BadAdapter
from lyc_fx.families import Adapter, merged, refuse_overflow
from lyc_fx.names import PREFIXES, Names
from lyc_fx.report import Applied, Report
from lyc_fx.stack import Stack

_SHOWN = 20
_PARTS = ("weight_g", "weight_v", "weight_orig", *(f"parametrizations.weight.original{n}" for n in ("", "0", "1")))
"""From what weight norm and other parametrizations compute a module's weight"""


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

    def oriented(self, adapter: Adapter) -> Adapter:
        """The adapter with its factors for `(out, in)`."""
        return adapter.oriented(self.shape, self.transposed)


@final
@dataclass(frozen=True)
class Bound:
    """One adapter of one set, bound to a weight."""

    adapter: Adapter
    index: int
    """Which set of the stack it comes from"""
    strength: float
    """Of the set"""
    factor: float = 1.0
    """What the block strengths say of this weight"""

    @property
    def total(self) -> float:
        """The strength on this weight."""
        return self.strength * self.factor

    @property
    def inert(self) -> bool:
        """Whether this leaves the weight as it is, to the bit."""
        return self.adapter.inert(self.total)


@final
@dataclass(frozen=True)
class Binding:
    """Adapters by the model's weight names, in the order in which they are summed."""

    targets: Mapping[str, tuple[Bound, ...]]
    report: Report
    sequential: bool = False

    def active(self, target: str) -> list[Bound]:
        """What changes a weight."""
        return [bound for bound in self.targets.get(target, ()) if not bound.inert]

    def merged(self, target: str, weight: Tensor, *, transposed: bool, compute: torch.dtype | None = None) -> Tensor:
        """The weight with all its adapters; the weight itself where none is active.

        Raises BadAdapter where the result overflows.
        """
        active = [(bound.adapter.to_device(weight.device), bound.total) for bound in self.active(target)]
        if not active:
            return weight
        result = merged(weight, active, transposed=transposed, compute=compute, sequential=self.sequential)
        refuse_overflow(target, weight, result)
        return result

    def doubts(self, target: str, weight: Tensor, *, transposed: bool) -> list[str]:
        """What speaks against this weight as the base of its adapters."""
        base = (weight.t() if transposed else weight).to(torch.float32)
        found = [bound.adapter.to_device(weight.device).to(torch.float32).doubt(base) for bound in self.active(target)]
        return [f"{target}: {doubt}" for doubt in found if doubt is not None]


def bind(
    stack: Stack,
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
    for index in stack.order():
        part = stack.parts[index]
        adapters = part.adapters
        unused += adapters.unread
        taken: dict[str, Entry] = {}
        for entry in adapters.entries:
            found = names.find(entry.module, entry.leaf)
            if not found and entry.leaf == "bias" and entry.adapter.keeps_zero:
                continue  # a module without bias: nothing is lost, and a lost module is known from its weight
            if not found:
                lost.append((adapters, entry))
                unused += entry.keys
                continue
            target = found[0]
            adapter = weights[target].oriented(entry.adapter)
            fault = _fault(entry, found, taken.get(target), weights)
            if fault is not None:
                faults.append(f"  {adapters.source}: {entry.module}: {fault}")
                continue
            taken[target] = entry
            bound = Bound(adapter, index, part.strength, part.factor(target))
            targets[target].append(bound)
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
                    bound.total,
                    weights[target].shape,
                )
            )
    if strict:
        if stack.parts and not any(part.adapters.entries or part.adapters.unread for part in stack.parts):
            faults.append(f"  {stack.parts[0].adapters.source}: the set is empty: did select or exclude leave nothing?")
        for adapters in (part.adapters for part in stack.parts):
            faults += [f"  {adapters.source}: {key}: no format reads this key" for key in adapters.unread]
        faults += [f"  strength: no adapted weight matches {p!r}" for p in stack.idle_patterns(targets)]
        faults += _unmatched(lost, names)
    if faults:
        advice = "" if not (lost and strict) else f"\n{_advice(lost, [row.module for row in applied])}"
        raise BadAdapter("\n".join([f"{len(faults)} adapters cannot be applied:", *_shorten(faults)]) + advice)
    report = Report(tuple(applied), tuple(unused))
    return Binding({name: tuple(bound) for name, bound in targets.items()}, report, stack.sequential)


def _fault(entry: Entry, found: list[str], rival: Entry | None, weights: Mapping[str, Weight]) -> str | None:
    weight = weights[found[0]]
    if len(found) > 1:
        return f"the name is ambiguous, it may mean {' or '.join(found)}; rename the key to the dotted path"
    if rival is not None and not (rival.module == entry.module and type(rival.adapter) is not type(entry.adapter)):
        return f"{found[0]} is named twice in this file, also by {rival.module}"
    if not weight.dtype.is_floating_point:
        return f"{found[0]} is stored as {weight.dtype}; adapters need a floating-point weight"
    if weight.dtype.itemsize == 1 and (scale := _scale(found[0], weights)) is not None:
        return f"{found[0]} is stored as {weight.dtype} in units of {scale}; merge into the checkpoint before scaling"
    try:
        weight.oriented(entry.adapter).fit(weight.logical)
    except BadAdapter as error:
        turned = len(weight.shape) == 2 and _fits(entry.adapter, weight.logical[::-1])
        hint = (
            "; it would fit the transpose: is the weight stored the other way round (--transposed)?" if turned else ""
        )
        return f"does not fit {found[0]} {weight.logical}: {error}{hint}"
    return None


def _fits(adapter: Adapter, shape: tuple[int, ...]) -> bool:
    try:
        adapter.fit(shape)
    except BadAdapter:
        return False
    return True


def _scale(name: str, weights: Mapping[str, Weight]) -> str | None:
    """What a float8 weight must be multiplied by: `fc.weight_scale`, `fc.scale_weight`, or a mark for all of them."""
    module = name.rpartition(".")[0]
    beside = (other for other in weights if other.rpartition(".")[0] == module and "scale" in other.rpartition(".")[2])
    return next(beside, "scaled_fp8" if "scaled_fp8" in weights else None)


def _unmatched(lost: Sequence[tuple[AdapterSet, Entry]], names: Names) -> list[str]:
    lines = []
    for position, (adapters, entry) in enumerate(lost):
        near = names.nearest(entry.module, entry.leaf) if position < _SHOWN else []
        hint = f"; nearest: {', '.join(near)}" if near else ""
        parts = [p for part in _PARTS for p in names.find(f"{entry.module}.{part}", "weight")]
        if parts:
            hint = f"; it is computed from {', '.join(parts)}: make it plain first, or merge into the live model"
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
