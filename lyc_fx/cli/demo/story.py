"""The demo from beginning to end. Every figure that it prints is computed while it runs."""

import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

from rich.console import Console
from rich.table import Table

import lyc_fx
from lyc_fx.cli.demo.compiling import compile_program
from lyc_fx.cli.demo.data import Data, MiniLM
from lyc_fx.cli.demo.excerpt import excerpt
from lyc_fx.cli.demo.roads import Graphs, reference_differences, require_close, weight_differences
from lyc_fx.cli.demo.search import Search, batches, embed, pick_queries, run_search
from lyc_fx.cli.progress import working
from lyc_fx.errors import LycFxError

_LAYER = "encoder.layer.0.attention.self.query"
_TOP = 3
_console = Console(highlight=False, soft_wrap=True)


def tell(data: Data) -> None:
    """Run and print the demo. Raises LycFxError if a road disagrees with another one or with the references."""
    started = perf_counter()
    with working("loading the model"):
        base = MiniLM.load()
    with TemporaryDirectory(prefix="lyc-fx-demo-") as folder:
        merged = Path(folder) / "merged.safetensors"
        _fold(base, data, merged)
        graphs = _graph(base, data)
        _agree(base, data, graphs, merged, Path(folder))
    before, after = _search(base, data, graphs)
    _figures(data, before, after)
    _console.print(f"\nThe demo took {perf_counter() - started:.0f} s.")


def _title(text: str) -> None:
    _console.print(f"\n[bold]{text}[/bold]")


def _fold(base: MiniLM, data: Data, merged: Path) -> None:
    _title("1. Fold the adapter into the checkpoint, on the command line")
    arguments = ["fold", str(base.checkpoint), str(data.adapter), "-o", str(merged)]
    _console.print(f"$ lyc-fx {shlex.join(arguments)}", markup=False)
    sys.stdout.flush()
    if subprocess.run([sys.executable, "-m", "lyc_fx", *arguments], check=False).returncode:
        raise LycFxError("lyc-fx fold failed, see above")


def _graph(base: MiniLM, data: Data) -> Graphs:
    _title(f"2. Capture the model, splice the adapter in, fold it; the graph at {_LAYER}")
    inputs = batches(base.tokenizer, ["an example", "another one, of another length"])[0].inputs
    started = perf_counter()
    with working("capturing, splicing, lowering, folding"):
        graphs = Graphs.of(base.model, inputs, lyc_fx.load(data.adapter))
    for name, graph in graphs.steps().items():
        steps = lyc_fx.history(graph)
        fired = ", ".join(f"{step.name} fired {step.fired} times" for step in steps)
        _console.print(f"{name}" + (f" ({fired})" if fired else ""))
        if name == "lowered":
            for miss in sorted({str(miss) for step in steps for miss in step.misses})[:1]:
                _console.print(f"  why not, at {miss}", markup=False)
        for line in excerpt(graph, _LAYER):
            _console.print(f"  {line}", markup=False)
    _console.print(f"in {perf_counter() - started:.1f} s")
    return graphs


def _agree(base: MiniLM, data: Data, graphs: Graphs, merged: Path, folder: Path) -> None:
    _title("3. The three roads agree, and they agree with LyCORIS")
    with working("merging the live model"):
        weights = weight_differences(graphs.folded, merged, base.model, lyc_fx.load(data.adapter))
    _differences("largest difference of any merged weight, float32", weights)
    with working("running every road in float64"):
        states = reference_differences(base.model, data.adapter, data.expected, folder)
    _differences("largest difference of any hidden state from LyCORIS's forward, float64", states)
    require_close(weights, 0.0, "merged weights")
    require_close(states, 1e-9, "hidden states")


def _differences(what: str, differences: Mapping[str, float]) -> None:
    _console.print(f"{what}:")
    for name, value in differences.items():
        _console.print(f"  {name:<26} {value:.3g}")


def _search(base: MiniLM, data: Data, graphs: Graphs) -> tuple[Search, Search]:
    pairs = data.pairs()
    _title(f"4. Search Python's standard library: docstring → one of {len(pairs)} signatures")
    work = batches(base.tokenizer, [doc for doc, _ in pairs] + [sig for _, sig in pairs])
    started = perf_counter()
    with working("compiling the folded graph"):
        model, backend = compile_program(graphs.folded, work[0].inputs)
    seconds = perf_counter() - started
    _console.print(f"torch.compile(folded, fullgraph=True), {backend}: {seconds:.1f} s", markup=False)
    before = run_search(embed(graphs.captured, work, "encoding with the base model"))
    after = run_search(embed(model, work, f"encoding with {data.name}"))
    _console.print(f"The two answers that gained most from {data.name}, and the one that lost most:")
    for query in pick_queries(before, after):
        _console.print(f'\n"{pairs[query][0]}"', markup=False)
        _console.print(f"  the answer's rank: {before.rank(query, query)} → {after.rank(query, query)}")
        for place, candidate in enumerate(after.top(query, _TOP), start=1):
            mark = "*" if candidate == query else " "
            was = f"(was {before.rank(query, candidate)})"
            _console.print(f"  {place} {was:<9} {mark} {pairs[candidate][1]}", markup=False)
    return before, after


def _figures(data: Data, before: Search, after: Search) -> None:
    _title("5. Recall over the whole test set, and as measured with LyCORIS (numbers.json)")
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for heading in ("recall@1", "recall@10", "MRR"):
        table.add_column(heading, justify="right")
    for name, search in (("base", before), (data.name, after)):
        reference = data.reference(name)
        figures = search.figures()
        table.add_row(name, *(f"{value:.4f}" for value in figures.values()))
        table.add_row("  reference", *(f"{reference[key]:.4f}" for key in figures), style="dim")
    _console.print(table)
