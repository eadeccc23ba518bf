"""What an operation did with each adapter: a table for people, plain data for programs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, final


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

    @property
    def unused(self) -> tuple[str, ...]:
        """Keys of the files that had no effect."""
        return tuple(each.key for each in self.refused)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self) | {"unused": list(self.unused)}

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
            }
            for row in self.applied
        ]
        weights = len({row.target for row in self.applied})
        lines = [*table(rows), f"{len(self.applied)} adapters on {weights} weights, {len(self.unused)} keys unused"]
        lines += [f"unused: {each.key}: {each.why}" for each in self.refused]
        return "\n".join([*lines, *(f"note: {n}" for n in self.notes)])


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Rows as aligned text under their headings."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
