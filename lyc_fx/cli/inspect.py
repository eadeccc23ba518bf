"""`lyc-fx inspect`: listing what an adapter file holds, layer by layer."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self, final

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from lyc_fx.cli.arguments import Alpha, Config
from lyc_fx.cli.partial import exit_with, load_sound
from lyc_fx.cli.progress import working

if TYPE_CHECKING:
    from lyc_fx.adapters.adapter_set import AdapterSet, Entry

_LONGEST = 200
"""How many characters of a metadata value are shown; --json shows all"""


@final
@dataclass(frozen=True)
class Factor:
    """One tensor of a layer's adapter."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    norm: float
    """Frobenius norm, in float64"""


@final
@dataclass(frozen=True)
class Layer:
    """One adapter of the file."""

    module: str
    parameter: str
    algorithm: str
    variant: str
    rank: int | None
    alpha: float | None
    scale: float
    """The factor on the adapter's product at strength 1"""
    factors: tuple[Factor, ...]

    @classmethod
    def of(cls, entry: "Entry") -> Self:
        """Describe one entry of an adapter set."""
        adapter = entry.adapter
        factors = tuple(
            Factor(
                adapter.suffixes[field],
                tuple(tensor.shape),
                str(tensor.dtype).removeprefix("torch."),
                tensor.numel() * tensor.element_size(),
                float(tensor.double().norm()),
            )
            for field, tensor in adapter.factors().items()
        )
        return cls(
            entry.module, entry.leaf, adapter.name, adapter.variant, adapter.rank, adapter.alpha, adapter.scale, factors
        )

    @property
    def bytes(self) -> int:
        """The size of all factors."""
        return sum(factor.bytes for factor in self.factors)

    def row(self) -> dict[str, str]:
        """Return the cells of the table by their headings."""
        return {
            "layer": self.module if self.parameter == "weight" else f"{self.module} ({self.parameter})",
            "algorithm": f"{self.algorithm} ({self.variant})" if self.variant else self.algorithm,
            "rank": "-" if self.rank is None else str(self.rank),
            "alpha": "-" if self.alpha is None else f"{self.alpha:g}",
            "scale": f"{self.scale:g}",
            "factors": ", ".join(f"{factor.name} {'×'.join(map(str, factor.shape))}" for factor in self.factors),
            "norms": ", ".join(f"{factor.norm:.4g}" for factor in self.factors),
            "size": decimal(self.bytes),
        }


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An adapter, a .safetensors file.")],
    config: Config = None,
    alpha: Alpha = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """List an adapter file's layers: algorithm, rank, alpha, effective scale, factors, their norms and sizes."""
    with working("reading the adapter", quiet=as_json):
        adapters, broken = load_sound(file, config, alpha)
        layers = [Layer.of(entry) for entry in adapters.entries]
    if as_json:
        typer.echo(json.dumps(_data(adapters, layers), indent=1))
    else:
        _print(adapters, layers)
    exit_with(broken, complete=not adapters.unread)


def _totals(layers: list[Layer]) -> dict[str, object]:
    return {
        "layers": len(layers),
        "algorithms": dict(Counter(layer.algorithm for layer in layers).most_common()),
        "bytes": sum(layer.bytes for layer in layers),
    }


def _data(adapters: "AdapterSet", layers: list[Layer]) -> dict[str, object]:
    return {
        "file": adapters.source,
        "layers": [asdict(layer) | {"bytes": layer.bytes} for layer in layers],
        "totals": _totals(layers),
        "metadata": dict(adapters.metadata),
        "unread": list(adapters.unread),
    }


class _Console(Console):
    """A console that leaves a closed pipe to `ReportsErrors`; rich would exit with an error."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def _print(adapters: "AdapterSet", layers: list[Layer]) -> None:
    console = _Console(highlight=False, soft_wrap=True)
    rows = [layer.row() for layer in layers]
    if console.is_terminal and rows:
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for heading in rows[0]:
            grid.add_column(heading, overflow="fold")
        for row in rows:
            grid.add_row(*map(Text, row.values()))
        console.print(grid, soft_wrap=False)
    else:
        from lyc_fx.binding.report import table

        for line in table(rows):  # one line per layer, however long, so that grep finds whole layers
            console.print(Text(line))
    kinds = Counter(layer.algorithm for layer in layers).most_common()
    said = ", ".join(f"{count} {name}" for name, count in kinds)
    console.print(f"{len(layers)} layers: {said}; {decimal(sum(layer.bytes for layer in layers))} of factors")
    for line in _notes(adapters.metadata, adapters.unread):
        console.print(Text(line))


def _notes(metadata: Mapping[str, str], unread: tuple[str, ...]) -> list[str]:
    cut = {key: value if len(value) <= _LONGEST else f"{value[:_LONGEST]}…" for key, value in sorted(metadata.items())}
    lines = [f"metadata {key}: {value}" for key, value in cut.items()] or ["no metadata"]
    return lines + [f"not understood: {key}" for key in unread]
