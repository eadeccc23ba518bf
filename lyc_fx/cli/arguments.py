"""`ADAPTER[@STRENGTH]`, as the user types it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

import typer


@final
@dataclass(frozen=True)
class Wanted:
    """An adapter file and the strength that was asked for."""

    path: Path
    strength: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Split at the last `@` where a number follows; the `@` of a path stays, and a file of that very name wins.

        Raises BadParameter where what stands before an `@` is a file and what follows is no number.
        """
        path, at, number = text.rpartition("@")
        if not at or Path(text).exists():
            return cls(Path(text))
        try:
            return cls(Path(path), float(number))
        except ValueError:
            if Path(path).exists():
                raise typer.BadParameter(f"{text}: the strength {number!r} is not a number") from None
            return cls(Path(text))
