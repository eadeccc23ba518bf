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


@final
@dataclass(frozen=True)
class Report:
    """Every adapter that was applied, every key that was not, and what is worth knowing besides."""

    applied: tuple[Applied, ...]
    unused: tuple[str, ...] = ()
    """Keys of the files that had no effect (only with `strict=False`)"""
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready data."""
        return asdict(self)

    def __str__(self) -> str:
        rows: list[Mapping[str, object]] = [
            {
                "weight": row.target,
                "shape": "×".join(map(str, row.shape)),
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
        return "\n".join([*lines, *(f"unused: {key}" for key in self.unused), *(f"note: {n}" for n in self.notes)])


def table(rows: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """Rows as aligned text under their headings."""
    if not rows:
        return
    cells = [list(rows[0])] + [[str(value) for value in row.values()] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
