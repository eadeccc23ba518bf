"""Modules of plain torch that put their weights to every use that capture must follow."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.zoo.case import Case

_ROWS, _LENGTH, _SIDE = (2, 3), (4, 6), (8, 10)


class Tied(nn.Module):
    """A language model whose embedding is its head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.inner = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.inner(self.embed(ids))))


class Repeated(nn.Module):
    """One module called three times, and one that is registered under two names and called by both."""

    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(16, 16)
        self.first = nn.Linear(16, 16)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.relu(self.step(x))
        return self.second(torch.relu(self.first(x)))


class Bare(nn.Module):
    """Weights without a module of their own: F.linear and F.conv1d on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.randn(12, 16))
        self.kernel = nn.Parameter(torch.randn(6, 12, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(F.linear(x, self.raw).transpose(1, 2), self.kernel, padding=1)


class Attention(nn.Module):
    """nn.MultiheadAttention, whose in_proj_weight is no module's, and a transformer layer with it inside."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x + self.attention(x, x, x, need_weights=False)[0])


class FusedQKV(nn.Module):
    """One Linear for queries, keys and values."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (4, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Blocks(nn.Module):
    """Parts under no_grad and under autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.low, self.out = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = self.low(torch.relu(x))
        return self.out(low.to(x.dtype))


class Convs(nn.Module):
    """Convolutions of every dimension, with groups, dilation, strides and kernels that are not square."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Sequential(
            nn.Conv1d(6, 12, 3, padding=1), nn.Conv1d(12, 8, 5, stride=2, groups=4), nn.Conv1d(8, 8, 3, dilation=2)
        )
        self.two = nn.Sequential(
            nn.Conv2d(4, 8, (3, 1), padding=(1, 0)),
            nn.Conv2d(8, 8, (1, 3), stride=(1, 2), groups=8),
            nn.Conv2d(8, 12, 3, padding=2, dilation=2, groups=2, bias=False),
        )
        self.three = nn.Sequential(nn.Conv3d(2, 4, (1, 3, 3), padding=(0, 1, 1)), nn.Conv3d(4, 6, 2, stride=2))

    def forward(self, x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.one(x), self.two(y), self.three(z)


def _padded(mode: Any, padding: Any) -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(6, 6, 3, padding=padding, padding_mode=mode),
        nn.Unflatten(1, (2, 3)),
        nn.Conv2d(2, 4, (3, 5), padding=padding, padding_mode=mode),
    )


def _normed_by_hooks() -> nn.Module:
    first = torch.nn.utils.weight_norm(nn.Linear(16, 12))
    return nn.Sequential(first, nn.ReLU(), torch.nn.utils.weight_norm(nn.Conv1d(4, 8, 3, padding=1), dim=None))


def _normed() -> nn.Module:
    first = parametrizations.weight_norm(nn.Linear(16, 12))
    return nn.Sequential(first, nn.ReLU(), parametrizations.weight_norm(nn.Conv1d(4, 8, 3, padding=1)))


def rows(size: int) -> dict[str, Any]:
    """`(batch, length, 16)`"""
    return {"x": torch.randn(_ROWS[size], _LENGTH[size], 16)}


def _channels(size: int) -> dict[str, Any]:
    return {"input": torch.randn(_ROWS[size], 4, 16)}


def _signal(size: int) -> dict[str, Any]:
    return {"input": torch.randn(_ROWS[size], 6, 3 * _SIDE[size])}


def _volumes(size: int) -> dict[str, Any]:
    n, side = _ROWS[size], _SIDE[size]
    return {
        "x": torch.randn(n, 6, 20 + size),
        "y": torch.randn(n, 4, side, side + 2),
        "z": torch.randn(n, 2, 4 + size, side, side),
    }


def _ids(size: int) -> dict[str, Any]:
    return {"ids": torch.randint(0, 20, (_ROWS[size], _LENGTH[size]))}


_IN_PROJ = {"attention.in_proj_weight": (48, 16), "layer.self_attn.in_proj_weight": (48, 16)}

CASES = (
    Case("tied", Tied, _ids),
    Case("repeated", Repeated, rows),
    Case("bare parameters", Bare, rows, bare={"raw": (12, 16), "kernel": (6, 12, 3)}),
    Case("attention", Attention, rows, bare=_IN_PROJ, exact=False),
    Case("fused qkv", FusedQKV, rows),
    Case("blocks", Blocks, rows),
    Case("convolutions", Convs, _volumes),
    Case("circular", lambda: _padded("circular", 2), _signal),
    Case("reflect", lambda: _padded("reflect", 2), _signal),
    Case("same", lambda: _padded("zeros", "same"), _signal),
    Case("same circular", lambda: _padded("circular", "same"), _signal),
    Case("weight norm, hooks", _normed_by_hooks, _channels),
    Case("weight norm, parametrized", _normed, _channels),
    Case("traced", lambda: torch.fx.symbolic_trace(Repeated()), rows),
)
