"""Random layers of every kind with an input that fits, for hypothesis."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from hypothesis import strategies as st
from nets import Conv1D, Layers, Variant, random_for, randomized
from torch import Tensor, nn

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@final
@dataclass(frozen=True)
class Layer:
    """A random layer; `vary` says which dimensions of the input are symbolic."""

    net: nn.Module
    sizes: tuple[int, ...]
    vary: tuple[bool, ...]
    transposed: bool = False

    @property
    def dims(self) -> str:
        return " ".join(f"d{i}" if free else "_" for i, free in enumerate(self.vary))

    @property
    def logical(self) -> tuple[int, ...]:
        shape = tuple(self.net.get_parameter("layer.weight").shape)
        return shape[::-1] if self.transposed else shape

    def x(self, extra: int = 0) -> Tensor:
        sizes = [size + extra * free for size, free in zip(self.sizes, self.vary, strict=True)]
        return torch.randn(sizes, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def layer_of(
    build: Callable[..., nn.Module], seed: int, sizes: tuple[int, ...], vary: tuple[bool, ...], *shape: Any, **more: Any
) -> Layer:
    torch.manual_seed(seed)
    made = build(*shape, **more)
    layer = randomized(made) if build in (nn.LayerNorm, nn.RMSNorm) else made
    return Layer(Layers(layer).double(), sizes, vary, build is Conv1D)


def layers_for(variant: Variant) -> st.SearchStrategy[Layer]:
    """Layers of the kinds that a variant exists for."""
    samples = {("linear", "addmm"): (12, 8), ("conv", "conv"): (12, 8, 1, 1), ("norm",): (12,)}
    kinds = [kinds for kinds, shape in samples.items() if random_for(variant, shape) is not None]
    return layers(tuple(kind for group in kinds for kind in group) or ("conv1d",))  # experts: three dimensions alone


@st.composite
def layers(draw: st.DrawFn, kinds: tuple[str, ...]) -> Layer:
    """Linear, Conv1D, norms, and convolutions with any stride, dilation, groups, padding and padding mode."""
    kind, seed = draw(st.sampled_from(kinds)), draw(st.integers(0, 2**16))
    if kind == "norm":
        channels = draw(st.integers(2, 9))
        norm, more = draw(st.sampled_from([(nn.LayerNorm, {}), (nn.RMSNorm, {}), (nn.LayerNorm, {"bias": False})]))
        return layer_of(norm, seed, (3, 4, channels), (True, draw(st.booleans()), False), channels, **more)
    if not kind.startswith("conv"):
        inner, out = draw(st.integers(1, 14)), draw(st.integers(1, 14))
        lead = draw(st.lists(st.integers(2, 4), min_size=1, max_size=3))
        vary = draw(st.lists(st.booleans(), min_size=len(lead), max_size=len(lead)))
        sizes, free = (*lead, inner), (*vary, False)
        if kind == "addmm":
            return layer_of(Conv1D, seed, sizes, free, out, inner)
        return layer_of(nn.Linear, seed, sizes, free, inner, out, bias=draw(st.booleans()))
    return _conv(draw, seed, 1 if kind == "conv1d" else 3)


def _conv(draw: st.DrawFn, seed: int, most: int) -> Layer:
    spatial, groups = draw(st.integers(1, most)), draw(st.integers(1, 3))
    inner, out = groups * draw(st.integers(1, 4)), groups * draw(st.integers(1, 4))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(spatial))

    kernel, dilation = each(1, 3), each(1, 2)
    same = draw(st.booleans())
    options = {
        "stride": 1 if same else each(1, 3),
        "padding": "same" if same else each(0, 2),
        "dilation": dilation,
        "groups": groups,
        "bias": draw(st.booleans()),
        "padding_mode": draw(st.sampled_from(["zeros", "zeros", "circular", "reflect"])),
    }
    sizes = each(8, 9)  # so that no output size is 1, which export would fix
    vary = draw(st.lists(st.booleans(), min_size=spatial + 1, max_size=spatial + 1))
    sizes = (draw(st.integers(2, 3)), inner, *sizes)
    return layer_of(CONVS[spatial], seed, sizes, (vary[0], False, *vary[1:]), inner, out, kernel, **options)
