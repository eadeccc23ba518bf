"""The layers, the adapters and the forms of a program that are counted."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

DTYPE = torch.bfloat16


@final
@dataclass(frozen=True)
class Layers:
    """Two adapted layers with an activation between, and the shape of their input."""

    build: Callable[[], nn.Module]
    input: tuple[int, ...]
    format: torch.memory_format = torch.contiguous_format

    def captured(self) -> tuple[GraphModule, Tensor, dict[str, tuple[int, ...]]]:
        """The program, its input, and the shapes of the two weights by their layers' names."""
        model = self.build().eval().requires_grad_(False).to(DTYPE, memory_format=self.format)
        x = torch.zeros(self.input, dtype=DTYPE).to(memory_format=self.format)
        weights = {n: tuple(m.weight.shape) for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
        return lyc_fx.capture(model, (x,)), x, weights


def _linears() -> nn.Module:
    return nn.Sequential(nn.Linear(256, 1024), nn.GELU(), nn.Linear(1024, 256))


def _convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(64, 128, 3, padding=1), nn.SiLU(), nn.Conv2d(128, 64, 3, padding=1))


LAYERS = {
    "linear": Layers(_linears, (8, 64, 256)),
    "conv": Layers(_convolutions, (2, 64, 32, 32)),
    "conv-nhwc": Layers(_convolutions, (2, 64, 32, 32), torch.channels_last),
}
"""The base's weights and input of `conv-nhwc` are in the layout that inductor turns a convolution to on a GPU"""


@final
@dataclass(frozen=True)
class Algorithm:
    """A family with the factors of its layout."""

    family: str
    factors: frozenset[str]
    rank: int
    on: tuple[str, ...] = tuple(LAYERS)

    def adapters(self, weights: dict[str, tuple[int, ...]]) -> AdapterSet:
        """A random adapter for each weight; without alpha, so that the strength is the only scale."""
        family = next(f for f in FAMILIES if f.name == self.family)
        entries = []
        for name, shape in weights.items():
            made = random_adapter(family, shape, layout=self.factors, rank=self.rank, dtype=DTYPE)
            entries.append(Entry(name, "weight", made, (name,)))
        return AdapterSet(tuple(entries), self.family)


def _of(family: str, factors: str, rank: int = 16, on: tuple[str, ...] = tuple(LAYERS)) -> Algorithm:
    return Algorithm(family, frozenset(factors.split()), rank, on)


ALGORITHMS = {
    "LoCon": _of("locon", "up down"),
    "LoCon, Tucker": _of("locon", "up down mid", on=("conv", "conv-nhwc")),
    "LoHa": _of("loha", "w1_a w1_b w2_a w2_b", rank=4),  # its chain has the rank squared
    "LoKr": _of("lokr", "w1 w2"),
    "LoKr, low rank": _of("lokr", "w1 w2_a w2_b", rank=4),
    "DoRA": _of("locon", "up down magnitude"),
    "Diag-OFT": _of("diag-oft", "blocks"),
    "BOFT": _of("boft", "blocks"),
    "GLoRA": _of("glora", "a1 a2 b1 b2"),
}


def _staged(spliced: GraphModule) -> GraphModule:
    return lyc_fx.stage(lyc_fx.lower(spliced))


FORMS: dict[str, Callable[[GraphModule], GraphModule]] = {
    "spliced": lambda spliced: spliced,
    "lowered": lyc_fx.lower,
} | ({"staged": _staged} if hasattr(lyc_fx, "stage") else {})
"""What is made of a spliced program: it stays in weight space, becomes chains, or chains with constants made ahead"""
