"""A small model with adapters, compiled with a cache, and what it computes; also as a process of its own.

python tests/compiled.py CACHE FORM… → prints hits and misses of inductor's caches, and the largest difference
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

FORMS = ("program", "attached")
X = torch.linspace(-1, 1, 35).reshape(5, 7)
LOCON = next(family for family in FAMILIES if family.name == "locon")


class Net(nn.Module):
    """Two equal blocks of one layer; with a function, they have a kernel too."""

    def __init__(self, seed: int, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.function, self.blocks = function, nn.ModuleList([nn.Linear(7, 7) for _ in range(2)])
        self.requires_grad_(False).eval()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = self.function(block(x))
        return x


def adapters(seed: int, rank: int) -> AdapterSet:
    rng = torch.Generator().manual_seed(seed)
    made = [random_adapter(LOCON, (7, 7), rank=rank, alpha=2.0, generator=rng) for _ in range(2)]
    return AdapterSet(tuple(Entry(f"blocks.{i}", "weight", a, (str(i),)) for i, a in enumerate(made)), "made")


@torch.no_grad()
def ran(
    form: str, cache: Path, seed: int = 0, function: Callable[[Tensor], Tensor] = torch.nn.functional.gelu
) -> tuple[Tensor, Tensor, dict[str, int]]:
    """The output of an adapted and compiled model, that of a merged one, and hits and misses on the way."""
    torch.compiler.reset()
    counters.clear()
    model, made, strength = Net(seed, function), adapters(seed, 2 + seed % 2), 0.7 - seed
    if form == "program":
        program = lyc_fx.splice(lyc_fx.capture(model, (X,)), made, strength, rank=3)
        compiled = lyc_fx.compile(lyc_fx.stage(lyc_fx.lower(program)), cache=cache)
    else:
        lyc_fx.attach(model, made, strength, rank=3)
        compiled = lyc_fx.compile(model, cache=cache)
    found = compiled(X)
    merged = Net(seed, function)
    lyc_fx.merge(merged, made, strength)
    names = ("fxgraph_cache_hit", "fxgraph_cache_miss")
    return found, merged(X), {name.rpartition("_")[2]: counters["inductor"][name] for name in names}


if __name__ == "__main__":
    for name in sys.argv[2:]:
        found, wanted, counts = ran(name, Path(sys.argv[1]), seed=int(os.environ.get("SEED", "1")))
        print(
            json.dumps(counts | {"difference": (found - wanted).abs().max().item(), "size": wanted.abs().max().item()})
        )
