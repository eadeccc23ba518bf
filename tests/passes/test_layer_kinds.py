"""Every layer kind with every structure that a weight's change can have: numbers, and that the chain fired or why not.

A case's weight is named `layer.weight`; the adapters are for it as it is stored.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from lowering import fired, made, misses
from nets import Case, one
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter


class Uses(nn.Module):
    """A weight, a bias and what is done with them."""

    def __init__(self, shape: tuple[int, ...], use: Callable[..., Tensor], bias: int = 0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.randn(bias)) if bias else None
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight, self.bias)


def _uses(name: str, shape: tuple[int, ...], use: Callable[..., Tensor], bias: int = 0) -> Case:
    """A layer on the last dimension of x."""
    inner = 6 if 6 in shape else shape[0]
    return Case(name, lambda: Uses(shape, use, bias), (5, inner), "batch _")


def _flat(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.addmm(b, x, w)


def _conv(name: str, build: Callable[[], nn.Module], *input: int) -> Case:
    dims = {3: "length", 4: "height width", 5: "depth height width"}[len(input)]
    return Case(name, build, input, f"batch _ {dims}")


T1, T2, T3 = nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d
GROUPS = {"stride": (2, 3), "padding": (1, 0), "output_padding": (1, 2), "dilation": (2, 1), "groups": 2}
CASES = (
    Case("linear", lambda: nn.Linear(6, 15), (5, 6), "batch _"),
    Case("linear-3d-no-bias", lambda: nn.Linear(6, 15, bias=False), (2, 5, 6), "batch sequence _"),
    _uses("linear-of-transpose", (6, 20), lambda x, w, b: F.linear(x, w.t(), b), 20),
    _uses("matmul", (6, 20), lambda x, w, b: x @ w),
    _uses("matmul-t", (20, 6), lambda x, w, b: x @ w.t() + b, 20),
    _uses("matmul-T", (20, 6), lambda x, w, b: x @ w.T),
    _uses("matmul-mT", (20, 6), lambda x, w, b: x @ w.mT),
    _uses("matmul-transpose", (20, 6), lambda x, w, b: x @ w.transpose(-1, 0)),
    _uses("matmul-permute", (20, 6), lambda x, w, b: x @ w.permute(1, 0)),
    _uses("transposed-activations", (20, 6), lambda x, w, b: F.linear(x.unsqueeze(0).mT.contiguous().mT, w, b), 20),
    _uses("mm", (6, 20), lambda x, w, b: torch.mm(x, w)),
    _uses("mm-t", (20, 6), lambda x, w, b: torch.mm(x, w.t())),
    _uses("addmm", (6, 20), _flat, 20),
    _uses("addmm-permute", (20, 6), lambda x, w, b: torch.addmm(b, x, w.permute(1, 0)), 20),
    _conv("conv1d", lambda: nn.Conv1d(6, 10, 3, stride=2, padding=1), 2, 6, 9),
    _conv("conv2d", lambda: nn.Conv2d(12, 10, (3, 2), (2, 1), (1, 2), (2, 1), 2, bias=False), 2, 12, 9, 8),
    _conv("conv2d-same", lambda: nn.Conv2d(6, 9, (3, 5), padding="same"), 2, 6, 6, 7),
    _conv("conv3d", lambda: nn.Conv3d(4, 6, (1, 3, 2), padding=(0, 1, 1)), 2, 4, 4, 5, 6),
    _conv("transposed1d", lambda: T1(6, 10, 3, stride=2, padding=1, output_padding=1), 2, 6, 9),
    _conv("transposed2d", lambda: T2(6, 20, (3, 2), bias=False), 2, 6, 5, 7),
    _conv("transposed2d-grouped", lambda: T2(8, 12, (3, 2), **GROUPS), 2, 8, 5, 7),
    _conv("transposed2d-1x1", lambda: T2(6, 15, 1, stride=2), 2, 6, 5, 7),
    _conv("transposed3d", lambda: T3(4, 6, (1, 3, 2), stride=(1, 2, 1), bias=False), 2, 4, 4, 5, 6),
    Case("embedding", lambda: nn.Embedding(20, 6), (2, 5), "batch sequence"),
    Case("embedding-padding", lambda: nn.Embedding(20, 6, padding_idx=3), (2, 5), "batch sequence"),
)
STRUCTURES: dict[str, tuple[str, tuple[str, ...], int]] = {
    "low rank": ("locon", (), 3),
    "Tucker": ("locon", ("mid",), 3),
    "Kronecker": ("lokr", (), 3),
    "Khatri–Rao": ("loha", (), 1),
    "Khatri–Rao of Tucker": ("loha", ("t1", "t2"), 1),
    "input map": ("glora", (), 2),
    "rows": ("ia3", (), 2),
    "columns": ("ia3", (), 3),
    "rotation": ("diag-oft", ("rescale",), 2),
    "butterfly": ("boft", (), 2),
    "given norms": ("locon", ("magnitude",), 2),
    "full": ("full", (), 1),
}
DECOMPOSED = ("low rank", "Kronecker", "rows", "columns", "full")
"""Enough to tell that a layer is found in a decomposed program: what is done there is the same as in others"""
SINGLE = "an embedding reads single rows, which a rotation mixes"
WHY = {
    "full": ("a full difference has no form that is smaller than the weight",),
    "Kronecker": ("do not fall into the layer's 2 groups",),
    "Khatri–Rao": ("times the operations of the layer",),
    "Khatri–Rao of Tucker": ("times the operations of the layer",),
    "rotation": (SINGLE, "across the layer's groups"),
    "butterfly": (SINGLE, "across the layer's groups"),
}
"""The only reasons for which a structure may have no chain"""


def adapter_for(structure: str, case: Case) -> Adapter | None:
    """None where there is none for such a weight."""
    family, factors, rank = STRUCTURES[structure]
    try:
        return made(family, case, *factors, rank=rank)
    except (AssertionError, StopIteration):
        return None


TABLE = [
    pytest.param(case, structure, id=f"{case.name}-{structure}")
    for case in CASES
    for structure in STRUCTURES
    if adapter_for(structure, case) is not None
]


@cache
def program(case: Case, decomposed: bool) -> GraphModule:
    dims = {"x": case.dims}
    if not decomposed:
        return lyc_fx.capture(case.net(), (x_of(case),), dynamic_shapes=dims)
    sizes = [{i: torch.export.Dim.DYNAMIC for i, d in enumerate(case.dims.split()) if d != "_"}]
    exported = torch.export.export(case.net(), (x_of(case),), dynamic_shapes=tuple(sizes), strict=False)
    return lyc_fx.capture(exported.run_decompositions())


def x_of(case: Case, extra: int = 0) -> Tensor:
    if not case.name.startswith("embedding"):
        return case.x(extra=extra)
    sizes = [size + extra for size in case.input]
    return torch.randint(0, 20, sizes, generator=torch.Generator().manual_seed(3))


def fires(case: Case, structure: str) -> bool | None:
    """Whether a chain must be there; None where that is a matter of sizes."""
    if structure == "full":
        return False
    if structure in ("rotation", "butterfly") and case.name.startswith("embedding"):
        return False
    grouped = getattr(case.net().layer, "groups", 1) > 1
    return None if structure.startswith("Khatri") or (grouped and structure in WHY) else True


ALL = [*((False, *each.values) for each in TABLE), *((True, *e.values) for e in TABLE if e.values[1] in DECOMPOSED)]


@pytest.mark.parametrize(
    ("decomposed", "case", "structure"), ALL, ids=[f"{c.name}-{s}{'-decomposed' * d}" for d, c, s in ALL]
)
def test_a_chain_or_its_reason(decomposed: bool, case: Case, structure: str) -> None:
    adapter = adapter_for(structure, case)
    assert adapter is not None
    before = lyc_fx.splice(program(case, decomposed), one(adapter), 0.7)
    after = lyc_fx.lower(before, check=True)
    wanted = fires(case, structure)
    assert fired(after) == (1 if wanted is None and fired(after) else int(wanted or 0)), misses(after)
    if not fired(after):
        assert any(reason in str(miss) for reason in WHY[structure] for miss in misses(after)), misses(after)
    for extra in (0, 3):
        x = x_of(case, extra)
        torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-11)


class Tied(nn.Module):
    """An embedding with padding and a head of one weight, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Embedding(20, 6, padding_idx=3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return (y @ y.mT) @ (torch.tanh(y) @ self.layer.weight.t())


@pytest.mark.parametrize("structure", ["low rank", "Kronecker", "Khatri–Rao", "input map", "rows", "columns"])
def test_a_tied_embedding_with_padding_has_the_same_gradients(structure: str) -> None:
    """Both layers get a chain, the product of two activations none; indices of padding give no gradient."""
    adapter = adapter_for(structure, next(c for c in CASES if c.name == "embedding"))
    assert adapter is not None
    x = torch.tensor([[1, 3, 7, 3, 0], [19, 2, 3, 3, 7]])
    torch.manual_seed(7)
    program = lyc_fx.capture(Tied().double(), (x,), dynamic_shapes={"x": "batch sequence"})
    before = lyc_fx.splice(program, one(adapter.to(torch.float64)), 0.7)  # gradients have the dtype of factors
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2, misses(after)
    torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-11)
    found = []
    for each in (before, after):
        factors = {n: p for n, p in each.named_parameters() if n.startswith("lyc_fx") and p.is_floating_point()}
        found.append(dict(zip(factors, torch.autograd.grad(each(x).square().sum(), factors.values()), strict=True)))
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)
    assert all(gradient.abs().max() > 1e-3 for gradient in found[0].values())


NEAR: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Tensor, str]] = {
    "a weight on the left": (lambda x, w: w @ x, torch.ones(4, 3).double(), "does not read"),
    "some of its rows": (lambda x, w: x @ w[:4], torch.ones(3, 4).double(), "slice"),
    "a product of the weight with itself": (lambda x, w: x @ (w @ w.t()), torch.ones(3, 6).double(), "does not read"),
    "rows that something else reads too": (lambda x, w: F.embedding(x, w) + w.sum(), torch.tensor([1, 5]), "sum"),
    "columns that are looked up": (lambda x, w: F.embedding(x, w.t()), torch.tensor([1, 3]), "looks up columns"),
    "gradients scaled by counts": (
        lambda x, w: F.embedding(x, w, scale_grad_by_freq=True),
        torch.tensor([1, 3, 3]),
        "how often an index occurs",
    ),
    "einsum": (lambda x, w: torch.einsum("bi,io->bo", x, w), torch.ones(3, 6).double(), "einsum"),
}


@pytest.mark.parametrize("name", NEAR)
def test_a_near_miss_is_left_alone(name: str) -> None:
    use, x, reason = NEAR[name]
    model = nn.Sequential(Uses((6, 4), lambda x, w, b: use(x, w))).double()
    factors = {"0.lora_up.weight": torch.randn(6, 2).double(), "0.lora_down.weight": torch.randn(2, 4).double()}
    adapters = lyc_fx.load({f"lycoris_{key}": factor for key, factor in factors.items()})
    before = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, 0.7)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 0
    assert any(reason in str(miss) for miss in misses(after)), misses(after)
    found = after(x)
    torch.testing.assert_close(found, before(x), rtol=1e-11, atol=1e-11)
    lyc_fx.merge(model, adapters, 0.7)  # whose tensors the programs share
    torch.testing.assert_close(found, model(x), rtol=1e-11, atol=1e-11)
