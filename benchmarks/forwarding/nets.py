"""Blocks of a transformer, and of a UNet's convolutions, with adapters for each of their layers."""

from math import prod
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention, silu

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.errors import BadAdapter


@final
class Block(nn.Module):
    """Attention and a feed-forward layer, before the residual sums normalized."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        q, k, v = (each(y).unflatten(-1, (-1, 64)).transpose(1, 2) for each in (self.q, self.k, self.v))
        x = x + self.o(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))
        return x + self.down(gelu(self.up(self.norm2(x))))


@final
class Residual(nn.Module):
    """A residual block of a UNet, without its time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(32, width), nn.GroupNorm(32, width)
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(silu(self.norm2(self.conv1(silu(self.norm1(x))))))


ALGORITHMS: dict[str, tuple[str, frozenset[str], int]] = {
    "LoRA 16": ("locon", frozenset({"up", "down"}), 16),
    "LoHa 4": ("loha", frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), 4),
    "LoHa 8": ("loha", frozenset({"w1_a", "w1_b", "w2_a", "w2_b"}), 8),
    "LoKr 8, full": ("lokr", frozenset({"w1", "w2"}), 16),
    "LoKr 8, rank 16": ("lokr", frozenset({"w1", "w2_a", "w2_b"}), 16),
    "DoRA 16": ("locon", frozenset({"up", "down", "magnitude"}), 16),
    "Diag-OFT 32": ("diag-oft", frozenset({"blocks"}), 32),
    "BOFT 16": ("boft", frozenset({"blocks"}), 8),
    "GLoRA 16": ("glora", frozenset({"a1", "a2", "b1", "b2"}), 16),
    "T-LoRA 16": ("tlora", frozenset({"q", "p", "lam"}), 16),
    "Tucker 16": ("locon", frozenset({"up", "down", "mid"}), 16),
}
"""Family, layout and rank"""
KRONECKER = 8
"""Rows and columns of LoKr's left factor"""


def adapters(model: nn.Module, algorithm: str) -> AdapterSet | None:
    """A random adapter for each layer; None where the algorithm does not exist for such layers."""
    entries = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            try:
                adapter = _adapter(algorithm, tuple(module.weight.shape))
            except BadAdapter:
                return None
            entries.append(Entry(path, "weight", adapter, (path,)))
    return AdapterSet(tuple(entries), algorithm)


def _adapter(algorithm: str, shape: tuple[int, ...]) -> Adapter:
    name, layout, rank = ALGORITHMS[algorithm]
    family = next(each for each in FAMILIES if each.name == name)
    made = random_adapter(family, shape, layout=layout, rank=rank, alpha=rank / 2)
    factors = {field: factor * 0.05 for field, factor in made.factors().items()}
    if name == "lokr":
        factors["w1"] = torch.randn(KRONECKER, KRONECKER) * 0.05
        out, inner, kernel = shape[0] // KRONECKER, shape[1] // KRONECKER, shape[2:]
        sizes = {"w2": (out, inner, *kernel), "w2_a": (out, rank), "w2_b": (rank, inner * prod(kernel))}
        factors |= {field: torch.randn(sizes[field]) * 0.05 for field in layout & sizes.keys()}
    return made.with_factors(factors)


def net(kind: str, width: int) -> nn.Module:
    """Two blocks, in float32."""
    torch.manual_seed(0)
    block = {"linear": Block, "conv": Residual}[kind]
    return nn.Sequential(block(width), block(width)).eval().requires_grad_(False)


def inputs(kind: str, width: int, size: int) -> Tensor:
    """`size` tokens, or `size` times `size` pixels."""
    return torch.randn(1, size, width) if kind == "linear" else torch.randn(1, width, size, size)
