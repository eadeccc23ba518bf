"""The report of an operation: what it did with each adapter, as a table for people and as data for programs."""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from typing import Any, Self, final

from lyc_fx.binding.rounding_said import ADVICE, named, percent, poorly_kept, too_little
from lyc_fx.errors import BadAdapter, counted
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.kept import LEAST, overall
from lyc_fx.naming.components import component_of


class NothingChanged(UserWarning):
    """A merge, fold or splice left every weight unchanged."""


class RoundedAway(UserWarning):
    """A merge or fold kept less than 0.9 of its changes: the rest was rounded away."""


@final
@dataclass(frozen=True)
class Applied:
    """One adapter, applied to one weight."""

    target: str
    """The model's name for the weight"""
    module: str
    """The file's name for the module"""
    source: str
    """The file"""
    algorithm: str
    variant: str
    rank: int | None
    alpha: float | None
    scale: float
    """The factor on the adapter's product, such as alpha/rank"""
    strength: float
    """The strength on this weight"""
    shape: tuple[int, ...]
    """The shape of the weight, as it is stored"""
    rows: tuple[int, int] | None = None
    """The rows of the weight that it changes, as (start, stop); None for all"""
    keys: tuple[str, ...] = ()
    """The keys of the file that it was read from"""


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
    """Every adapter that was applied, every key that had no effect, and further notes."""

    applied: tuple[Applied, ...]
    refused: tuple[Unused, ...] = ()
    """Keys of the files that had no effect (only with `strict=False`), and why"""
    notes: tuple[str, ...] = ()
    untouched: tuple[str, ...] = ()
    """The model's weights of two or more dimensions that have no adapter"""
    changes: Mapping[str, float] = field(default_factory=dict)
    """`‖W' - W‖ / ‖W‖` of each merged weight, estimated from some of its elements; 0 if no bit changed"""
    kept: Mapping[str, float] = field(default_factory=dict)
    """`⟨W' - W, Δ⟩ / ⟨Δ, Δ⟩` of each merged weight with a change Δ: what is left of it after rounding (merging.kept)"""
    kept_overall: float | None = None
    """The same over all weights, each weighted by its ⟨Δ, Δ⟩"""

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
        """The weights that have adapters and of which no bit changed."""
        return tuple(name for name, change in self.changes.items() if change == 0)

    @property
    def nothing_changed(self) -> str | None:
        """Why no bit of any weight changed; None if one did, or if nothing has been merged yet."""
        if len(self.unchanged) < len(self.changes) or (self.applied and not self.changes):
            return None
        if not (self.applied or self.refused):
            return "no weight changed: there is no adapter to apply"
        if not self.applied:
            return f"no weight changed: no adapter matches one, and {counted(len(self.refused), 'key')} had no effect"
        idle = all(row.strength == 0 for row in self.applied)
        why = "their strength is 0" if idle else "their factors are zero, or too weak for the dtype of the weights"
        return f"no bit of any weight changed, although {counted(len(self.applied), 'adapter')} matched one: {why}"

    @property
    def kept_line(self) -> str | None:
        """How much of all changes is left after rounding, as a line for people; None if nothing was to change."""
        return None if self.kept_overall is None else f"kept: {percent(self.kept_overall)} of the change"

    @property
    def rounded_away(self) -> str | None:
        """How little of the changes is left after rounding, and of which weights the least; None if it is enough."""
        return too_little(self.kept, self.kept_overall)

    def measured(self, effects: Mapping[str, Effect]) -> Self:
        """Return the report with the effects of a merge on the weights.

        Notes name adapted weights that did not change, and those that kept less than half of their change.
        """
        changes = {row.target: 0.0 for row in self.applied} | {n: each.relative for n, each in effects.items()}
        kept = {n: share for n, each in effects.items() if (share := each.kept.share) is not None}
        once = {id(each): each.kept for each in effects.values()}  # that of a tied weight has several names
        found = replace(self, changes=changes, kept=kept, kept_overall=overall(once.values()))
        notes = []
        if 0 < len(found.unchanged) < len(found.changes):
            notes.append(
                f"{len(found.unchanged)} of {len(found.changes)} adapted weights did not change at all: "
                + named(found.unchanged)
            )
        poor = poorly_kept({name: share for name, share in kept.items() if changes[name]})
        if poor is not None and found.rounded_away is None:
            notes.append(poor)
        return replace(found, notes=(*found.notes, *notes))

    def refuse_rounded_away(self, *, lossy: bool) -> None:
        """Raise BadAdapter, unless `lossy`, if less than half of the changes is left after rounding."""
        if not lossy and self.kept_overall is not None and self.kept_overall < LEAST:
            raise BadAdapter(f"{self.rounded_away}: {ADVICE}")

    def warn(self, stacklevel: int = 3) -> None:
        """Warn with NothingChanged if nothing changed, or with RoundedAway if too little of the changes is left."""
        if self.nothing_changed is not None:
            warnings.warn(self.nothing_changed, NothingChanged, stacklevel=stacklevel)
        else:
            self.warn_of_rounding(stacklevel + 1)

    def warn_of_rounding(self, stacklevel: int = 3) -> None:
        """Warn with RoundedAway if less than 0.9 of the changes is left after rounding."""
        if self.rounded_away is not None:
            warnings.warn(self.rounded_away, RoundedAway, stacklevel=stacklevel)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready data. The change of a weight that was all zeros is None."""
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
                **({"change": percent(self.changes.get(row.target))} if self.changes else {}),
                **({"kept": percent(self.kept.get(row.target))} if self.kept else {}),
            }
            for row in self.applied
        ]
        lines = [*table(rows), self._summary]
        lines += [] if self.kept_line is None else [self.kept_line]
        lines += [f"unused: {each.key}: {each.why}" for each in self.refused]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Yield the lines of a table: the headings, which are the keys of the first row, and the rows, aligned."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
