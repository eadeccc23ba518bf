"""A model to export, and adapters for it: two layers and a norm between them, objects as results, odd sizes."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet


@dataclass
class Result:
    """What a library's class is: torch stores its name, and a process without it does not know it."""

    out: Tensor
    hidden: tuple[Tensor, Tensor]


pytree.register_pytree_node(
    Result,
    lambda value: ([value.out, value.hidden], ["out", "hidden"]),
    lambda values, names: Result(**dict(zip(names, values, strict=True))),
    serialized_type_name="tests.exporting.models.Result",
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 15)
        self.norm = nn.BatchNorm1d(5)
        self.conv = nn.Conv1d(5, 10, 3, padding=1, groups=1)
        self.last = nn.Linear(15, 7)

    def forward(self, x: Tensor, *, scale: Tensor, shift: bool = True) -> Result:
        first = self.first(x) * scale
        conv = self.conv(self.norm(first))
        last = self.last(first.tanh())
        return Result(last + shift, (first, conv))


def net() -> Net:
    torch.manual_seed(0)
    model = Net().eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2.0)
    return model


@cache
def captured() -> GraphModule:
    shapes = {"x": "batch<=64 _ _", "scale": "batch<=64 _ _"}
    return lyc_fx.capture(net(), (torch.randn(3, 5, 6),), {"scale": torch.ones(3, 5, 1)}, shapes)


def inputs(batch: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(batch)
    return torch.randn(batch, 5, 6, generator=rng), torch.rand(batch, 5, 1, generator=rng)


SHAPES = {"first": (15, 6), "conv": (10, 5, 3), "last": (7, 15)}


def lora(rank: int, alpha: float, seed: int = 0) -> AdapterSet:
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, inner, *kernel) in SHAPES.items():
        tensors[f"lycoris_{name}.lora_up.weight"] = torch.randn(out, rank, *[1] * len(kernel), generator=rng) / 4
        tensors[f"lycoris_{name}.lora_down.weight"] = torch.randn(rank, inner, *kernel, generator=rng) / 4
        tensors[f"lycoris_{name}.alpha"] = torch.tensor(alpha)
    return lyc_fx.load(tensors)


def loha(rank: int, alpha: float, seed: int = 1) -> AdapterSet:
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, inner, *kernel) in SHAPES.items():
        taps = kernel[0] if kernel else 1
        for side in ("w1", "w2"):
            tensors[f"lycoris_{name}.hada_{side}_a"] = torch.randn(out, rank, generator=rng) / 2
            tensors[f"lycoris_{name}.hada_{side}_b"] = torch.randn(rank, inner * taps, generator=rng) / 2
        tensors[f"lycoris_{name}.alpha"] = torch.tensor(alpha)
    return lyc_fx.load(tensors)


def lokr(alpha: float, seed: int = 2) -> AdapterSet:
    """On the linear layers alone; low rank in the second factor."""
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, left, (k, n) in (("first", (3, 2), (5, 3)), ("last", (7, 3), (1, 5))):
        tensors[f"lycoris_{name}.lokr_w1"] = torch.randn(left, generator=rng) / 2
        tensors[f"lycoris_{name}.lokr_w2_a"] = torch.randn(k, 2, generator=rng) / 2
        tensors[f"lycoris_{name}.lokr_w2_b"] = torch.randn(2, n, generator=rng) / 2
        tensors[f"lycoris_{name}.alpha"] = torch.tensor(alpha)
    return lyc_fx.load(tensors)


def merged(adapters: object, strength: float, batch: int = 4) -> list[Tensor]:
    """What the model computes with its weights merged: all tensors of the result."""
    model = net()
    lyc_fx.merge(model, adapters, strength)
    x, scale = inputs(batch)
    with torch.no_grad():
        return pytree.tree_leaves(model(x, scale=scale))


def apart(results: object, wanted: list[Tensor]) -> float:
    """The largest difference, relative to the largest value of its tensor."""
    found = pytree.tree_leaves(results)
    assert len(found) == len(wanted)
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True))
