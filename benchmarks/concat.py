"""Narrow layers joined or apart: two sets on one weight, and queries, keys and values that read one input.

    python benchmarks/concat.py [--width 1024] [--rank 16] [--eager 4] [--compiled 16 256] [--rounds 40]

An attention block with LoRA on q, k and v, staged; a cell is the median of the rounds' ratios to the base model, with
the quartiles, in CPU time on one thread, and the number of linear layers. `apart` has two narrow layers for each
adapter; `summed` one chain of summed rank for all sets of a weight; `joined` also one first factor for q, k and v.
"""

import argparse
import time
import warnings
from collections.abc import Callable
from statistics import median, quantiles
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import scaled_dot_product_attention

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.binding.report import table
from lyc_fx.graph import pipeline
from lyc_fx.graph.costs.arithmetic import multiplies
from lyc_fx.passes.distribute import Distribute
from lyc_fx.passes.stage import Stage

Run = Callable[[Tensor], Tensor]


class Attention(nn.Module):
    """Of heads of 64 channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 64)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.o(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def adapters(width: int, rank: int, seed: int) -> AdapterSet:
    locon, random = next(f for f in FAMILIES if f.name == "locon"), torch.Generator().manual_seed(seed)
    entries = []
    for name in ("q", "k", "v"):
        made = random_adapter(locon, (width, width), layout=frozenset({"up", "down"}), rank=rank, generator=random)
        entries.append(Entry(name, "weight", made, (name,)))
    return AdapterSet(tuple(entries), f"set {seed}")


def forms(width: int, rank: int, sets: int, x: Tensor) -> dict[str, nn.Module]:
    model = Attention(width).eval().requires_grad_(False)
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), [(adapters(width, rank, n), 0.7) for n in range(sets)])
    with patch("lyc_fx.graph.chains.formula.joined", lambda layer, actions, in_order: list(actions)):
        apart = pipeline.run(spliced, Distribute(), Stage())
    found: dict[str, nn.Module] = {"base": model, "apart": apart}
    found |= {"summed": pipeline.run(spliced, Distribute(), Stage())} if sets > 1 else {}
    return found | {"joined": lyc_fx.stage(lyc_fx.lower(spliced))}


def timed(run: Run, x: Tensor, repeats: int) -> float:
    started = time.process_time()
    for _ in range(repeats):
        run(x)
    return (time.process_time() - started) / repeats


def measured(found: dict[str, nn.Module], x: Tensor, rounds: int, *, eager: bool) -> dict[str, str]:
    torch._dynamo.reset()
    runs: dict[str, Run] = {name: m if eager else torch.compile(m, dynamic=False) for name, m in found.items()}
    for run in runs.values():
        run(x)
    repeats = max(1, int(0.02 / timed(runs["base"], x, 3)))
    times = [{name: timed(run, x, repeats) for name, run in runs.items()} for _ in range(rounds)]
    cells = {"base, ms": f"{1e3 * median(each['base'] for each in times):.3f}"}
    for name, module in found.items():
        if isinstance(module, GraphModule):
            ratios = [each[name] / each["base"] for each in times]
            low, _, high = quantiles(ratios, n=4)
            calls = sum(map(multiplies, module.graph.nodes))
            cells[name] = f"{median(ratios):.3f} ({low:.3f} to {high:.3f}), {calls}"
    return cells


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--sets", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--eager", type=int, nargs="*", default=[4], help="numbers of tokens")
    parser.add_argument("--compiled", type=int, nargs="*", default=[16, 256], help="numbers of tokens")
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for sets in args.sets:
        for tokens, eager in [(n, True) for n in args.eager] + [(n, False) for n in args.compiled]:
            torch.manual_seed(0)
            x = torch.randn(1, tokens, args.width)
            cells = measured(forms(args.width, args.rank, sets, x), x, args.rounds, eager=eager)
            rows.append({"sets": sets, "tokens": tokens, "how": "eager" if eager else "compiled"} | cells)
            print(rows[-1], flush=True)
    columns = dict.fromkeys(column for row in rows for column in row)
    print(f"CPU, one thread, torch {torch.__version__}, width {args.width}, rank {args.rank}")
    print("\n".join(table([{column: row.get(column, "-") for column in columns} for row in rows])))


if __name__ == "__main__":
    main()
