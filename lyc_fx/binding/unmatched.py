"""Error messages for adapters that match no weight: the nearest names, and what is probably wrong."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.base.architecture import purpose
from lyc_fx.errors import SHOWN, counted
from lyc_fx.naming import COMPONENTS, INTERLEAVED, PREFIXES, Names

_PARTS = ("weight_g", "weight_v", "weight_orig", *(f"parametrizations.weight.original{n}" for n in ("", "0", "1")))
"""The tensors from which weight norm and other parametrizations compute a module's weight"""


OF_UNREAD = (
    "Without such a key, the result may differ from the adapter that was trained: leave these modules out by name "
    "(adapters.exclude, command line: --exclude PATTERN), or apply the rest and list these keys in the report: "
    "strict=False (command line: --no-strict)."
)
"""Advice on keys that no format reads"""


def unmatched(lost: Sequence[tuple[AdapterSet, Entry]], names: Names, matched: Sequence[str]) -> list[str]:
    """Return a line for each adapter that matches no weight; only one per component that the model does not have.

    `matched` are the modules of the adapters that do match a weight.
    """
    lines, apart = [], elsewhere([entry.module for _, entry in lost], matched)
    for prefix, modules in apart.items():
        sources = ", ".join(dict.fromkeys(adapters.source for adapters, entry in lost if entry.module in modules))
        lines.append(
            f"  {sources}: {counted(len(modules), 'adapter')} of another component, {prefix}*, such as {modules[0]}"
        )
    lost = [(adapters, entry) for adapters, entry in lost if not any(entry.module in each for each in apart.values())]
    for position, (adapters, entry) in enumerate(lost):
        near = names.nearest(entry.module, entry.leaf) if position < SHOWN else []
        hint = f"; nearest: {', '.join(near)}" if near else ""
        found = [pieces for part in _PARTS for pieces in names.find(f"{entry.module}.{part}", "weight")]
        parts = [piece.parameter for pieces in found for piece in pieces]
        owner, _, leaf = entry.module.rpartition("." if "." in entry.module else "_")
        if leaf in ("query", "key", "value") and names.find(f"{owner}_{INTERLEAVED}", entry.leaf):
            hint = (
                f"; the model has {INTERLEAVED} there, whose rows are interleaved by heads: an adapter for all of it "
                "fits, but one for a part cannot be placed without the number of heads"
            )
        if parts:
            hint = (
                f"; it is computed from {', '.join(parts)}: make it a plain weight first, or merge into the live model"
            )
        lines.append(f"  {adapters.source}: {entry.module}: no such {entry.leaf} in the model{hint}")
    return lines


def advice(lost: Sequence[tuple[AdapterSet, Entry]], matched: Sequence[str], own: Iterable[str]) -> str:
    """Return advice on adapters that match no weight of a model with the parameters `own`."""
    if not matched:
        sets = {id(adapters): adapters for adapters, _ in lost}.values()
        found = [purpose(each.metadata, [entry.module for _, entry in lost], own) for each in sets]
        known = " ".join(dict.fromkeys(filter(None, found)))
        return f"None of the names is the model's: are these adapters for another model? {known}".rstrip()
    modules = [entry.module for _, entry in lost]
    apart = elsewhere(modules, matched)
    if sum(map(len, apart.values())) == len(modules):
        patterns = [f"{prefix}*" for prefix in apart]
        said = ", ".join(f'"{pattern}"' for pattern in patterns)
        line = " ".join(f'--exclude "{pattern}"' for pattern in patterns)
        return (
            "These adapters are for other components of a pipeline: give the whole pipeline (lyc_fx.merge(pipe, …)), "
            f"or leave them out: adapters.exclude({said}) (command line: {line})."
        )
    return "strict=False (command line: --no-strict) applies the rest and lists these in the report."


def elsewhere(lost: Sequence[str], matched: Sequence[str]) -> dict[str, list[str]]:
    """Group the modules that match no weight by their component's prefix, if no matched module has that prefix."""
    known = sorted((*(f"{prefix}_" for prefix in PREFIXES), *COMPONENTS), key=len, reverse=True)
    found: dict[str, list[str]] = defaultdict(list)
    for module in lost:
        prefix = next((each for each in known if module.startswith(each)), None)
        if prefix is not None and matched and not any(module.startswith(prefix) for module in matched):
            found[prefix].append(module)
    return dict(found)
