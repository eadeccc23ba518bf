"""How many adapted layers of the tests' models become chains, by algorithm: captured, and after `run_decompositions()`.

    python benchmarks/chains.py [--models vae llama gpt2 bert vit resnet] [--families locon loha …]

Each Linear, Conv and Embedding of each model gets a random adapter. A row says how many weights were spliced, and how
many of these became chains. It says why others did not with `--why`.
"""

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.binding.report import table
from lyc_fx.errors import BadAdapter

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tests.zoo import diffusers_models, torch_models, transformers_models  # noqa: E402  # they are found by the line above
from tests.zoo.adapted import layers, shape_of  # noqa: E402
from tests.zoo.case import Case  # noqa: E402

CASES = {c.name: c for each in (diffusers_models, transformers_models, torch_models) for c in each.CASES}


def programs(case: Case) -> Iterator[tuple[str, nn.Module, GraphModule]]:
    model, inputs = case.model(), case.call(0)
    yield "captured", model, lyc_fx.capture(model, kwargs=inputs)
    try:
        exported = torch.export.export(model, (), inputs, strict=False).run_decompositions()
    except ValueError as error:
        print(f"{case.name}: torch does not decompose it: {str(error).splitlines()[0]}")
        return
    yield "decomposed", model, lyc_fx.capture(exported)


def adapters(model: nn.Module, family: type[Adapter], layout: frozenset[str]) -> AdapterSet:
    entries = []
    for name, layer in layers(model).items():
        try:
            adapter = random_adapter(family, shape_of(layer), layout=layout, rank=2, alpha=1.0)
        except BadAdapter:
            continue
        entries.append(Entry(name, "weight", adapter, (name,)))
    return AdapterSet(tuple(entries), family.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["vae", "llama", "gpt2", "bert", "vit", "resnet"], choices=CASES)
    parser.add_argument("--families", nargs="+", default=[f.name for f in FAMILIES])
    parser.add_argument("--why", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[tuple[str, str, str]] = Counter()
    reasons: Counter[str] = Counter()
    variants = [(f, layout) for f in FAMILIES if f.name in args.families for layout in f.layouts]
    for name in args.models:
        for form, model, program in programs(CASES[name]):
            for family, layout in variants:
                made = adapters(model, family, layout)
                if not made.entries:
                    continue
                lowered = lyc_fx.lower(lyc_fx.splice(program, made, 0.7, strict=False))
                row = f"{family.name} ({', '.join(sorted(layout))})"
                for step in lyc_fx.history(lowered):
                    counts[row, form, step.name] += step.fired
                    reasons.update(f"{row}, {form}: {miss.reason}" for miss in step.misses)
    print("\n".join(table([_row(row, counts) for row in dict.fromkeys(row for row, _, _ in counts)])))
    if args.why:
        print("\n".join(f"{count} × {reason}" for reason, count in reasons.most_common()))


def _row(row: str, counts: Counter[tuple[str, str, str]]) -> dict[str, object]:
    cells: dict[str, object] = {"algorithm": row}
    for form in ("captured", "decomposed"):
        cells[form] = f"{counts[row, form, 'distribute']} of {counts[row, form, 'splice']}"
    return cells


if __name__ == "__main__":
    main()
