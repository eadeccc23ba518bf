"""What is said of adapters that find no weight: the nearest names, and what is probably wrong."""

from collections.abc import Sequence

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.naming import INTERLEAVED, PREFIXES, Names

SHOWN = 20
"""How many of a long list a message names"""
_PARTS = ("weight_g", "weight_v", "weight_orig", *(f"parametrizations.weight.original{n}" for n in ("", "0", "1")))
"""From what weight norm and other parametrizations compute a module's weight"""


def unmatched(lost: Sequence[tuple[AdapterSet, Entry]], names: Names) -> list[str]:
    lines = []
    for position, (adapters, entry) in enumerate(lost):
        near = names.nearest(entry.module, entry.leaf) if position < SHOWN else []
        hint = f"; nearest: {', '.join(near)}" if near else ""
        found = [pieces for part in _PARTS for pieces in names.find(f"{entry.module}.{part}", "weight")]
        parts = [piece.parameter for pieces in found for piece in pieces]
        owner, _, leaf = entry.module.rpartition("." if "." in entry.module else "_")
        if leaf in ("query", "key", "value") and names.find(f"{owner}_{INTERLEAVED}", entry.leaf):
            hint = (
                f"; the model has {INTERLEAVED} there, whose rows are interleaved by heads: an adapter of the whole of "
                "it fits, that of a part cannot be placed without the number of heads"
            )
        if parts:
            hint = f"; it is computed from {', '.join(parts)}: make it plain first, or merge into the live model"
        lines.append(f"  {adapters.source}: {entry.module}: no such {entry.leaf} in the model{hint}")
    return lines


def advice(lost: Sequence[tuple[AdapterSet, Entry]], matched: Sequence[str]) -> str:
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


def shortened(lines: list[str]) -> list[str]:
    more = len(lines) - SHOWN
    return lines if more <= 0 else [*lines[:SHOWN], f"  … and {more} more"]
