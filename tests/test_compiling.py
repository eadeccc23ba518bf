"""lyc_fx.compile: programs whole, blocks that are alike once, and nothing compiled again."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowering import EVEN, adapted, made
from nets import one
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter


class Counting:
    """A backend that counts the graphs that it gets."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, gm: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs += 1
        return gm.forward


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 15), nn.Linear(15, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    def __init__(self, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks, self.head = nn.ModuleList([Block() for _ in range(count)]), nn.Linear(6, 3)
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def adapters(model: nn.Module, family: str, seed: int = 0) -> AdapterSet:
    kind, rng = next(f for f in FAMILIES if f.name == family), torch.Generator().manual_seed(seed)
    layers = [(n, tuple(each.weight.shape)) for n, each in model.named_modules() if isinstance(each, nn.Linear)]
    made = [
        (n, random_adapter(kind, shape, rank=3, alpha=1.0, dtype=torch.float64, generator=rng)) for n, shape in layers
    ]
    return AdapterSet(tuple(Entry(n, "weight", adapter, (n,)) for n, adapter in made), "test.safetensors")


@pytest.mark.parametrize("family", ["locon", "lokr", "diag-oft", "tlora"])
def test_blocks_that_are_alike_are_compiled_once(family: str) -> None:
    torch.compiler.reset()
    model, backend, x = Net().double(), Counting(), torch.randn(5, 6, dtype=torch.float64)
    attached = lyc_fx.attach(model, adapters(model, family), 0.7)
    assert lyc_fx.compile(model, backend=backend) is model
    wanted = Net().double()
    lyc_fx.merge(wanted, adapters(wanted, family), 0.7)
    torch.testing.assert_close(model(x), wanted(x), rtol=1e-9, atol=1e-9)
    assert backend.graphs == 1
    with torch.compiler.set_stance("fail_on_recompile"):
        attached.set(adapters(model, family, seed=1), -0.2)
        wanted = Net().double()
        lyc_fx.merge(wanted, adapters(wanted, family, seed=1), -0.2)
        torch.testing.assert_close(model(x), wanted(x), rtol=1e-9, atol=1e-9)
    assert backend.graphs == 1


def test_a_model_without_such_blocks_is_compiled_whole() -> None:
    torch.compiler.reset()
    model, backend, x = Net(1).double(), Counting(), torch.randn(5, 6, dtype=torch.float64)
    compiled = lyc_fx.compile(model, backend=backend)
    assert torch.equal(compiled(x), model(x)) and backend.graphs == 1


@pytest.mark.parametrize("adapted", [False, True])
def test_lists_of_torchs_own_layers(adapted: bool) -> None:
    """Dynamo does not begin at their code, but at the forward that adapters give them."""
    torch.compiler.reset()
    model = Net().double()
    model.blocks = nn.ModuleList([nn.Linear(6, 6) for _ in range(2)]).double().requires_grad_(False)
    x, backend = torch.randn(5, 6, dtype=torch.float64), Counting()
    if adapted:
        lyc_fx.attach(model, adapters(model, "locon"), 0.7)
    wanted = model(x)
    torch.testing.assert_close(lyc_fx.compile(model, backend=backend)(x), wanted)
    assert backend.graphs == 1


def test_a_program_is_compiled_for_its_open_sizes() -> None:
    torch.compiler.reset()
    backend = Counting()
    program = lyc_fx.stage(lyc_fx.lower(adapted(EVEN, made("lokr", EVEN))))
    compiled = lyc_fx.compile(program, backend=backend)
    compiled(EVEN.x())
    assert backend.graphs
    with torch.compiler.set_stance("fail_on_recompile"):
        for extra in (0, 3, 5):
            torch.testing.assert_close(compiled(EVEN.x(extra=extra)), program(EVEN.x(extra=extra)))


def test_frozen_is_for_folded_programs() -> None:
    torch.compiler.reset()
    spliced = adapted(EVEN, made("locon", EVEN), dtype=torch.float32)
    folded, x = lyc_fx.fold(spliced), EVEN.x(torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(lyc_fx.compile(folded, frozen=True)(x), folded(x))
    model = nn.Sequential(EVEN.build())
    lyc_fx.attach(model, one(made("locon", EVEN), "0"), 0.7)
    for given in (spliced, lyc_fx.stage(spliced), model):
        with pytest.raises(lyc_fx.WrongArgument, match="fold the program first"):
            lyc_fx.compile(given, frozen=True)
    with pytest.raises(lyc_fx.WrongArgument, match="a program or a model is expected, not str"):
        lyc_fx.compile("model.pt2")  # type: ignore[arg-type]
