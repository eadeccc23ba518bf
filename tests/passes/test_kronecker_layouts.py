"""A Kronecker product on a convolution: in channels last its right factor runs in groups, and no input is copied."""

from functools import cache

import pytest
import torch
from lowering import fired, made
from nets import Case, many
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter

aten = torch.ops.aten
PLANE = Case("conv2d", lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 5, 7), "batch _ height width")
GROUPED = Case("grouped", lambda: nn.Conv2d(8, 16, 3, padding=1, groups=2), (2, 8, 5, 6), "batch _ height width")
BACK = Case("transposed", lambda: nn.ConvTranspose2d(6, 8, 3, stride=2), (2, 6, 5, 7), "batch _ height width")
SPACE = Case("conv3d", lambda: nn.Conv3d(6, 8, 3, padding=1), (2, 6, 5, 4, 3), "batch _ depth height width")
LAYERS = {case.name: case for case in (PLANE, GROUPED, BACK, SPACE)}
LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}
FACTORS = {"full": ("w1", "w2"), "low rank": ("w1", "w2_a", "w2_b"), "Tucker": ("w1", "w2_a", "w2_b", "t2")}


def adapter(case: Case, factors: str) -> Adapter:
    return made("lokr", case, *FACTORS[factors], rank=2)


def laid(x: Tensor, last: bool) -> Tensor:
    return x.contiguous(memory_format=LAYOUTS[x.dim()] if last else torch.contiguous_format)


@cache
def spliced(name: str, factors: str, last: bool, dtype: torch.dtype = torch.float64) -> GraphModule:
    case = LAYERS[name]
    x = laid(case.x(dtype), last)
    model = case.net(dtype).to(memory_format=LAYOUTS[x.dim()] if last else torch.contiguous_format)
    program = lyc_fx.capture(model, (x,), dynamic_shapes={"x": case.dims})
    return lyc_fx.splice(program, many(layer=adapter(case, factors)), 0.7)


def folds_batches(program: GraphModule) -> bool:
    """Whether a part of the channels joins the batch."""
    return any(
        n.args[1:2] == (0,) for n in program.graph.find_nodes(op="call_function", target=aten.flatten.using_ints)
    )


def repeats(program: GraphModule) -> int:
    return len(program.graph.find_nodes(op="call_function", target=aten.repeat.default))


@pytest.mark.parametrize("last", [True, False], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("factors", FACTORS)
@pytest.mark.parametrize("name", LAYERS)
def test_groups_only_in_channels_last(name: str, factors: str, last: bool) -> None:
    """And only of a full right factor."""
    before = spliced(name, factors, last)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    grouped = last and factors == "full"
    assert (folds_batches(after), repeats(after)) == (not grouped, grouped)
    for extra in (0, 3):
        x = laid(LAYERS[name].x(extra=extra), last)
        torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-11)
        assert after(x).stride() == before(x).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_in_other_dtypes(dtype: torch.dtype) -> None:
    before = spliced("conv2d", "full", True, dtype)
    x, digits = laid(PLANE.x(dtype), True), 1e-5 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(lyc_fx.lower(before)(x), before(x), rtol=digits, atol=digits)


def test_one_layout_of_two() -> None:
    """Layers that are alike in all but the layout do not share a chain."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = PLANE.build(), PLANE.build()

        def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            return self.a(x), self.b(y)

    inputs = laid(PLANE.x(), True), laid(PLANE.x(), False)
    adapters = many(a=adapter(PLANE, "full"), b=adapter(PLANE, "full"))
    before = lyc_fx.splice(lyc_fx.capture(Both().double(), inputs), adapters, 0.7)
    after = lyc_fx.lower(before, check=True)
    assert (fired(after), repeats(after), folds_batches(after)) == (2, 1, True)
    for found, wanted in zip(after(*inputs), before(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)


def test_the_other_layout_may_come_later() -> None:
    before, x = spliced("conv2d", "full", True), PLANE.x()
    torch.testing.assert_close(lyc_fx.lower(before)(x), before(x), rtol=1e-11, atol=1e-11)


def test_gradients() -> None:
    before, x = spliced("conv2d", "full", True), laid(PLANE.x(), True)
    found = []
    for program in (before, lyc_fx.lower(before)):
        factors = [p for name, p in program.named_parameters() if name.startswith("lyc_fx")]
        found.append(torch.autograd.grad(program(x).square().sum(), factors))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


def test_it_can_be_staged_and_exported() -> None:
    after, x = lyc_fx.lower(spliced("conv2d", "full", True)), laid(PLANE.x(), True)
    for program in (after, lyc_fx.stage(after)):
        exported = torch.export.export(program, (x,), strict=False).module()
        torch.testing.assert_close(exported(x), after(x), rtol=1e-11, atol=1e-11)
    assert not repeats(lyc_fx.stage(after))
