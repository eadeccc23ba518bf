"""`ADAPTER[@STRENGTH]` and `PATTERN=FACTOR`, as the user types them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self, final

import typer

DType = Literal["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"]
"""The dtypes of torch to which a fold can convert weights"""
Config = Annotated[
    Path | None, typer.Option(metavar="FILE", help="PEFT's adapter_config.json, for files that have none beside them.")
]
Alpha = Annotated[float | None, typer.Option(help="Where the files do not say it: the scale is alpha/r.")]


def parse_block(text: str) -> tuple[str, float]:
    """`*attn1*=0.5` → its pattern and factor. Raises BadParameter."""
    pattern, _, number = text.rpartition("=")
    try:
        return (pattern, float(number)) if pattern else _no_block(text)
    except ValueError:
        return _no_block(text)


def _no_block(text: str) -> tuple[str, float]:
    raise typer.BadParameter(f"{text}: a block is PATTERN=FACTOR, such as '*attn1*=0.5'")


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
