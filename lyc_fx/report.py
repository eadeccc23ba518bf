"""What an operation did with each adapter: a table for people, plain data for programs."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Self, final

from lyc_fx.errors import counted
from lyc_fx.naming.components import component_of

_NAMED = 5
"""Weights that a note names"""


class NothingChanged(UserWarning):
    """A merge or a fold left every weight as it was."""


@final
@dataclass(frozen=True)
class Applied:
    """One adapter on one weight."""

    target: str
    """The model's name of the weight"""
    module: str
    """The file's name of the module"""
    source: str
    algorithm: str
    variant: str
    rank: int | None
    alpha: float | None
    scale: float
    """alpha/rank as used"""
    strength: float
    shape: tuple[int, ...]
    """Of the weight"""
    rows: tuple[int, int] | None = None
    """Of the weight that were changed, first and one after the last; None for all"""
    keys: tuple[str, ...] = ()
    """Of the file, that this was read from"""


@final
@dataclass(frozen=True)
class Unused:
    """One key of a file that had no effect."""

    key: str
    source: str
    why: str


@final
@dataclass(frozen=True)
class Report:
    """Every adapter that was applied, every key that was not, and what is worth knowing besides."""

    applied: tuple[Applied, ...]
    refused: tuple[Unused, ...] = ()
    """Keys of the files that had no effect (only with `strict=False`), and why"""
    notes: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    """The model's weights of two dimensions or more that have no adapter"""
    changes: Mapping[str, float] = field(default_factory=dict)
    """‖W' - W‖ / ‖W‖ of each weight that was merged, estimated from some of its elements; 0 where no bit changed"""

    def __repr__(self) -> str:
        return f"<Report: {self._summary}, {counted(len(self.notes), 'note')}>"

    @property
    def _summary(self) -> str:
        weights = len({row.target for row in self.applied})
        parts = Counter(each[:-1] for row in self.applied if (each := component_of(row.target)[0]))
        named = ", ".join(f"{name} {count}" for name, count in sorted(parts.items()))
        by_component = f" ({named})" if len(parts) > 1 else ""
        done = f"{counted(len(self.applied), 'adapter')} on {counted(weights, 'weight')}"
        return f"{done}, {counted(len(self.unused), 'key')} unused{by_component}"

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys of the files that had no effect."""
        return tuple(each.key for each in self.refused)

    @property
    def unchanged(self) -> tuple[str, ...]:
        """The weights that have adapters and are as they were, to the bit."""
        return tuple(name for name, change in self.changes.items() if change == 0)

    @property
    def nothing_changed(self) -> str | None:
        """Why no bit of any weight is another one; None where that is not so, or nothing was merged yet."""
        if len(self.unchanged) < len(self.changes) or (self.applied and not self.changes):
            return None
        if not (self.applied or self.refused):
            return "no weight changed: there is no adapter to apply"
        if not self.applied:
            return f"no weight changed: no adapter found one, and {counted(len(self.refused), 'key')} had no effect"
        idle = all(row.strength == 0 for row in self.applied)
        why = "their strength is 0" if idle else "their factors are zero, or too weak for the dtype of the weights"
        return f"no weight changed by a bit, although {counted(len(self.applied), 'adapter')} found one: {why}"

    def measured(self, changes: Mapping[str, float]) -> Self:
        """The report with `changes`, where a weight that has none did not change; a note names such."""
        every = {row.target: changes.get(row.target, 0.0) for row in self.applied}
        found = replace(self, changes={**every, **changes})
        if not 0 < len(found.unchanged) < len(found.changes):
            return found
        named = ", ".join(found.unchanged[:_NAMED]) + (" …" if len(found.unchanged) > _NAMED else "")
        note = f"{len(found.unchanged)} of {len(found.changes)} adapted weights did not change by a bit: {named}"
        return replace(found, notes=(*found.notes, note))

    def warn(self, stacklevel: int = 3) -> None:
        """Warn where nothing changed."""
        if self.nothing_changed is not None:
            warnings.warn(self.nothing_changed, NothingChanged, stacklevel=stacklevel)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data; a change of a weight that was zero has no number."""
        changes = {name: change if isfinite(change) else None for name, change in self.changes.items()}
        return asdict(self) | {"unused": list(self.unused), "unchanged": list(self.unchanged), "changes": changes}

    def __str__(self) -> str:
        rows: list[Mapping[str, object]] = [
            {
                "weight": row.target,
                "shape": "×".join(map(str, row.shape))
                + ("" if row.rows is None else f" [{row.rows[0]}:{row.rows[1]}]"),
                "algorithm": f"{row.algorithm} {row.variant}".strip(),
                "rank": "-" if row.rank is None else row.rank,
                "alpha": "-" if row.alpha is None else f"{row.alpha:g}",
                "scale": f"{row.scale:g}",
                "strength": f"{row.strength:g}",
                **({"change": _percent(self.changes.get(row.target))} if self.changes else {}),
            }
            for row in self.applied
        ]
        lines = [*table(rows), self._summary]
        lines += [f"unused: {each.key}: {each.why}" for each in self.refused]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def _percent(change: float | None) -> str:
    return "-" if change is None else f"{100 * change:.3g} %"


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Rows as aligned text under their headings."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
