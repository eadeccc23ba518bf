"""Staged kernels lie in memory as the activations that they convolve, so that no call has to bring them there."""

from dataclasses import dataclass

import pytest
import torch
from lowering import made
from nets import Case, many
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.graph.constants import in_bank
from lyc_fx.graph.program import BANK, get_tensor

LAST, PLAIN = torch.channels_last, torch.contiguous_format
CONVOLUTION = Case("", lambda: nn.Conv2d(6, 8, 3, padding=1), (2, 6, 5, 7), "batch _ height width")
ADAPTERS: dict[str, Adapter] = {
    "low rank": made("locon", CONVOLUTION),
    "Tucker": made("locon", CONVOLUTION, "mid"),
    "given norms": made("locon", CONVOLUTION, "magnitude"),
    "Khatri–Rao": made("loha", CONVOLUTION, rank=2),
    "full": made("full", CONVOLUTION),
}


@dataclass
class Programs:
    """The same adapted convolution before and after staging, with its input."""

    lowered: GraphModule
    staged: GraphModule
    x: Tensor


def programs(adapter: Adapter, layout: torch.memory_format, dtype: torch.dtype, *, dynamic: bool = True) -> Programs:
    model = CONVOLUTION.net(dtype).to(memory_format=layout)
    x = CONVOLUTION.x(dtype).to(memory_format=layout)
    dims = {"dynamic_shapes": {"x": CONVOLUTION.dims}} if dynamic else {}
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,), **dims), many(layer=adapter), 0.7)
    lowered = lyc_fx.lower(spliced, check=dtype == torch.float64)
    return Programs(lowered, lyc_fx.stage(lowered), x)


def kernels(program: GraphModule) -> list[Tensor]:
    """Those of more than one tap that the adapter's convolutions read."""
    read = [get_tensor(program, str(node.target)) for node in program.graph.nodes if in_bank(node)]
    return [tensor for tensor in read if tensor.dim() == 4 and tensor.shape[-1] > 1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", ADAPTERS)
def test_in_channels_last(name: str, dynamic: bool, dtype: torch.dtype) -> None:
    """With the same numbers, at first and after another strength, in outputs that lie as before."""
    made_here = programs(ADAPTERS[name].to(dtype), LAST, dtype, dynamic=dynamic)
    lowered, staged, x = made_here.lowered, made_here.staged, made_here.x
    assert kernels(staged) and all(kernel.is_contiguous(memory_format=LAST) for kernel in kernels(staged))
    for strength in (0.7, -1.3):
        staged.get_buffer(f"{BANK}.0.strength").fill_(strength)  # one tensor, which both share
        lyc_fx.restage(staged)
        found, wanted = staged(x), lowered(x)
        digits = 1e-11 if dtype == torch.float64 else 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found, wanted, rtol=digits, atol=digits)
        assert found.stride() == wanted.stride()
    assert all(kernel.is_contiguous(memory_format=LAST) for kernel in kernels(staged))


@pytest.mark.parametrize("name", ADAPTERS)
def test_others_stay_as_they_are(name: str) -> None:
    staged = programs(ADAPTERS[name], PLAIN, torch.float32).staged
    assert kernels(staged) and all(kernel.is_contiguous() for kernel in kernels(staged))


def test_one_pixel_is_in_no_layout() -> None:
    """Of an image of one pixel, channels lie side by side in either layout."""
    model = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1))
    program = lyc_fx.capture(model, (torch.randn(2, 6, 1, 1),))
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, many(**{"0": ADAPTERS["low rank"]}), 0.7)))
    assert kernels(staged) and all(kernel.is_contiguous() for kernel in kernels(staged))


def test_it_can_be_exported() -> None:
    made_here = programs(ADAPTERS["low rank"].to(torch.float32), LAST, torch.float32)
    exported = torch.export.export(made_here.staged, (made_here.x,), strict=False)
    torch.testing.assert_close(exported.module()(made_here.x), made_here.staged(made_here.x))
