"""Small layers of every kind, with what is easily got wrong: out ≠ in, odd sizes, bias, groups, stride, dilation."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor, nn

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.errors import BadAdapter


class Conv1D(nn.Module):
    """A linear layer that stores its weight `(in, out)`, as the class of this name in transformers."""

    def __init__(self, out: int, inner: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inner, out))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight)
        return flat.reshape(*x.shape[:-1], -1)


def randomized(layer: nn.Module) -> nn.Module:
    """A layer whose parameters are not the ones and zeros that it starts with."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter, 1.0, 0.2)
    return layer


class Layers(nn.Module):
    """One layer under the name `layer`."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@final
@dataclass(frozen=True)
class Case:
    """A layer, the shape of an input for it, and the names of that input's dimensions."""

    name: str
    build: Callable[[], nn.Module]
    input: tuple[int, ...]
    dims: str
    transposed: bool = False

    def net(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        torch.manual_seed(7)
        return Layers(self.build()).to(dtype).eval()

    def x(self, dtype: torch.dtype = torch.float64, extra: int = 0) -> Tensor:
        """An input; `extra` makes every dimension that may vary larger."""
        sizes = [s + extra * (d != "_") for s, d in zip(self.input, self.dims.split(), strict=True)]
        return torch.randn(sizes, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)

    @cached_property
    def logical(self) -> tuple[int, ...]:
        shape = tuple(self.net().layer.weight.shape)  # type: ignore[union-attr]
        return shape[::-1] if self.transposed else shape


CASES = (
    Case("linear", lambda: nn.Linear(6, 15), (2, 5, 6), "batch sequence _"),
    Case("linear-prime-no-bias", lambda: nn.Linear(7, 11, bias=False), (3, 7), "batch _"),
    Case("addmm", lambda: Conv1D(15, 6), (2, 5, 6), "batch sequence _", transposed=True),
    Case("conv1d", lambda: nn.Conv1d(6, 10, 3, stride=2, padding=1), (2, 6, 9), "batch _ length"),
    Case("conv2d-1x1", lambda: nn.Conv2d(6, 15, 1, stride=2), (2, 6, 5, 7), "batch _ height width"),
    Case(
        "conv2d-grouped-dilated",
        lambda: nn.Conv2d(12, 10, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(2, 1), groups=2),
        (2, 12, 9, 8),
        "batch _ height width",
    ),
    Case("conv2d-same", lambda: nn.Conv2d(6, 9, (3, 5), padding="same"), (2, 6, 6, 7), "batch _ height width"),
    Case(
        "conv2d-circular",
        lambda: nn.Conv2d(6, 9, 3, padding=1, padding_mode="circular", bias=False),
        (2, 6, 6, 7),
        "batch _ height width",
    ),
    Case("conv2d-even", lambda: nn.Conv2d(6, 20, (2, 1)), (2, 6, 5, 7), "batch _ height width"),
    Case("layer-norm", lambda: randomized(nn.LayerNorm(12)), (2, 5, 12), "batch sequence _"),
    Case("group-norm", lambda: randomized(nn.GroupNorm(2, 12)), (2, 12, 5), "batch _ length"),
    Case("rms-norm", lambda: randomized(nn.RMSNorm(12)), (2, 5, 12), "batch sequence _"),
    Case(
        "conv3d", lambda: nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), (2, 4, 4, 5, 6), "batch _ depth height width"
    ),
)
Variant = tuple[type[Adapter], frozenset[str]]
VARIANTS: list[Variant] = [(family, layout) for family in FAMILIES for layout in family.layouts]


def variant_id(value: object) -> str:
    """Test ids: `lokr(w1,w2_a,w2_b)` and `conv1d`."""
    if isinstance(value, tuple) and isinstance(value[0], type):
        family, layout = value
        return f"{family.name}({','.join(f for f in family.suffixes if f in layout)})"
    return value.name if isinstance(value, Case) else str(value)


def random_for(
    variant: Variant,
    shape: tuple[int, ...],
    *,
    rank: int = 3,
    alpha: float | None = 2.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Adapter | None:
    """A random adapter of this variant; None where the variant does not exist for such a weight."""
    family, layout = variant
    generator = torch.Generator().manual_seed(seed)
    try:
        return random_adapter(family, shape, layout=layout, rank=rank, alpha=alpha, dtype=dtype, generator=generator)
    except BadAdapter:
        return None


def pairs(
    layers: Iterable[Case | tuple[int, ...]], variants: Iterable[Variant] = VARIANTS, **options: Any
) -> list[tuple[Variant, Any]]:
    """Every variant with every layer (or shape of a weight) for which it exists, as `random_for` has it."""
    found = [(variant, layer) for layer in layers for variant in variants]
    shapes = [layer.logical if isinstance(layer, Case) else layer for _, layer in found]
    return [
        pair for pair, shape in zip(found, shapes, strict=True) if random_for(pair[0], shape, **options) is not None
    ]


def certain(variant: Variant, shape: tuple[int, ...], **options: Any) -> Adapter:
    """`random_for` of a variant that exists for such a weight."""
    adapter = random_for(variant, shape, **options)
    assert adapter is not None
    return adapter


def one(adapter: Adapter, module: str = "lycoris_layer", leaf: str = "weight") -> AdapterSet:
    """A set of one adapter."""
    return AdapterSet((Entry(module, leaf, adapter, (f"{module}.factors",)),), source="test.safetensors")


def many(**adapters: Adapter) -> AdapterSet:
    """A set of adapters by module name (as in the file)."""
    return AdapterSet(tuple(Entry(m, "weight", a, (f"{m}.factors",)) for m, a in adapters.items()), "test.safetensors")
