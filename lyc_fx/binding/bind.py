"""Binding adapters to a model's weights, and reporting every adapter that cannot be bound. Used on all roads."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.binding.bound import Binding, Bound
from lyc_fx.binding.experts import rearranged
from lyc_fx.binding.fitting import Weight, placed
from lyc_fx.binding.named import names_for
from lyc_fx.binding.report import Applied, Report, Unused
from lyc_fx.binding.stack import Stack
from lyc_fx.binding.twins import Twins, mirrored
from lyc_fx.binding.unmatched import OF_UNREAD, advice, unmatched
from lyc_fx.errors import BadAdapter, NotApplicable, counted, listing
from lyc_fx.naming import Names, Piece


def bind(
    stack: Stack,
    weights: Mapping[str, Weight],
    *,
    strict: bool,
    aliases: Mapping[str, str] = MappingProxyType({}),
    same: Twins = MappingProxyType({}),
    elsewhere: Callable[[], Mapping[str, str]] = dict,
) -> Binding:
    """Bind every adapter of every set in a stack to the weights that it changes.

    `weights` describes the model's weights by name; `aliases` maps further names to those; `elsewhere` returns still
    more names, and is called only if an adapter matches none of the others. `same` is what `twins` returns.

    An adapter for a fused weight (such as qkv) is split if the model has separate weights (q, k, v), and an adapter for
    a separate weight acts on its rows of the fused one. If the model has both, both are changed. Adapters for experts
    are converted to the form in which the model has them (`lyc_fx.binding.experts`).

    With `strict=False`, adapters without a weight are listed as `refused` in the report; one that does not fit its
    weight is an error even then. Raises NotApplicable (a BadAdapter), which lists every fault, before anything is
    changed.
    """
    shapes = {name: weight.logical for name, weight in weights.items()}
    every = [entry for part in stack.parts for entry in part.adapters.entries]
    names = names_for(every, shapes, aliases, elsewhere)
    components = _components(stack.components, names)
    targets: dict[str, list[Bound]] = defaultdict(list)
    applied: list[Applied] = []
    refused: list[Unused] = []
    lost: list[tuple[AdapterSet, Entry]] = []
    faults: list[str] = []
    for index in stack.order():
        part = stack.parts[index]
        adapters = part.adapters
        refused += [Unused(key, adapters.source, "no format reads this key") for key in adapters.unread]
        taken: dict[str, list[tuple[Piece, Entry]]] = defaultdict(list)
        for entry in rearranged(adapters.entries, names, weights):
            if entry.unread and not strict:
                why = f"{entry.module} has a key that no format reads, {entry.unread[0]}: the module is left out"
                refused += [Unused(key, adapters.source, why) for key in entry.keys]
                continue
            places = {tuple(names.find(entry.module, entry.leaf, each)) for each in components} - {()}
            if not places and entry.leaf == "bias" and entry.adapter.keeps_zero:
                continue  # a module without bias: nothing is lost, and a missing module is reported for its weight
            if not places:
                lost.append((adapters, entry))
                refused += [Unused(key, adapters.source, f"no such {entry.leaf} in the model") for key in entry.keys]
                continue
            try:
                bound = [
                    (each, Bound(own, index, part.strength, part.factor(each.parameter), each.rows))
                    for place in sorted(places, key=repr)
                    for piece, adapter in placed(entry, list(place), taken, weights)
                    for each, own in mirrored(piece, adapter, weights, same)
                ]
            except BadAdapter as error:
                faults.append(f"  {adapters.source}: {entry.module}: {error}")
                continue
            for piece, each in bound:
                taken[piece.parameter].append((piece, entry))
                targets[piece.parameter].append(each)
                applied.append(_row(piece, each, entry, adapters.source, weights[piece.parameter]))
    if strict:
        if stack.parts and not any(part.adapters.entries or part.adapters.unread for part in stack.parts):
            faults.append(f"  {stack.parts[0].adapters.source}: the set is empty: did select or exclude leave nothing?")
        for adapters in (part.adapters for part in stack.parts):
            faults += [f"  {adapters.source}: {key}: no format reads this key" for key in adapters.unread]
        faults += [f"  strength: no adapted weight matches {p!r}" for p in stack.idle_patterns(targets)]
    wrong = len(faults) + (len(lost) if strict else 0)
    if strict:
        faults += unmatched(lost, names, [row.module for row in applied])
    if faults:
        unread = any(part.adapters.unread for part in stack.parts)
        hint = advice(lost, [row.module for row in applied], shapes) if lost and strict else ""
        hint = OF_UNREAD if unread and strict and not lost else hint
        raise NotApplicable(listing(f"{counted(wrong, 'adapter')} cannot be applied:", faults), hint)
    parts = {
        part for w in weights.values() if w.weight_norm for part in (w.weight_norm.direction, w.weight_norm.magnitude)
    }
    untouched = tuple(n for n, w in weights.items() if len(w.shape) > 1 and n not in targets and n not in parts)
    notes = _taken(names, targets) if not stack.components else ()
    report = Report(tuple(applied), tuple(refused), notes, untouched)
    return Binding({n: tuple(b) for n, b in targets.items()}, report, stack.sequential, stack.allow_nonfinite)


def _components(asked: Sequence[str], names: Names) -> Sequence[str | None]:
    """Return the components to bind to, of those with the same parameter names; (None,) for the default.

    Raises BadAdapter for a name that is not one of them.
    """
    for each in asked:
        if each not in names.denoisers:
            known = ", ".join(names.denoisers) or "the model has none"
            raise BadAdapter(f"component {each}: is not one of the components with the same parameter names: {known}")
    return asked or (None,)


def _taken(names: Names, targets: Iterable[str]) -> tuple[str, ...]:
    """Return a note if several components have the same parameter names and only one of them got adapters."""
    found = {prefix for target in targets if (prefix := target.partition(".")[0]) in names.denoisers}
    if len(found) != 1:
        return ()
    [taken] = found
    others = " and ".join(name for name in names.denoisers if name != taken)
    return (
        f"{taken} and {others} have the same parameter names, and the adapters were applied to {taken}: use "
        f"component={others!r} (command line: --component {others}) for the other",
    )


def _row(piece: Piece, bound: Bound, entry: Entry, source: str, weight: Weight) -> Applied:
    adapter = bound.adapter
    return Applied(
        piece.parameter,
        entry.module,
        source,
        adapter.name,
        adapter.variant,
        adapter.rank,
        adapter.alpha,
        adapter.scale,
        bound.total,
        weight.shape,
        piece.rows,
        entry.keys,
    )
