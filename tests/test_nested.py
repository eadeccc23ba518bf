"""Programs with graphs inside: autocast regions, branches and loops, from the capture to a .pt2 and back."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

import lyc_fx
from lyc_fx.errors import Unsupported

STRENGTH = 0.7
X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self, run: Callable[["Net", Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.run = nn.Linear(6, 6), nn.Linear(6, 6), run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def cast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = net.a(x)
    return net.b(y.float())


def uncast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return net.b(net.a(x))


def branch(net: Net, x: Tensor) -> Tensor:
    return torch.cond(x.sum() > 0, lambda x: net.a(x), lambda x: torch.relu(net.b(x)), (x,))


def cast_branch(net: Net, x: Tensor) -> Tensor:
    def other(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = net.b(x)
        return y.float()

    return torch.cond(x.sum() > 0, lambda x: net.b(net.a(x)), other, (x,))


def branch_cast(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return branch(net, x)


def loop(net: Net, x: Tensor) -> Tensor:
    def body(i: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return i + 1, torch.tanh(net.b(net.a(x)))

    found: tuple[Tensor, Tensor] = while_loop(lambda i, x: i < 3, body, (torch.tensor(0), x))
    return found[1]


def adapters() -> lyc_fx.AdapterSet:
    rng = torch.Generator().manual_seed(2)
    names = [f"lycoris_{layer}.lora_{side}.weight" for layer in "ab" for side in ("up", "down")]
    return lyc_fx.load({n: torch.randn((6, 2) if "up" in n else (2, 6), generator=rng) for n in names})


@pytest.mark.parametrize(
    ("run", "dynamic"), [(cast, "auto"), (uncast, None), (branch, "auto"), (cast_branch, None), (loop, None)]
)
def test_nested_graphs(run: Callable[[Net, Tensor], Tensor], dynamic: str | None, tmp_path: Path) -> None:
    model, merged, path = Net(run), Net(run), tmp_path / "program.pt2"
    lyc_fx.merge(merged, adapters(), STRENGTH)
    inputs = (X, -X, *([X[:3], -X[:3]] if dynamic else []))
    with torch.no_grad():
        assert not torch.equal(model(X), merged(X)) and not torch.equal(model(-X), merged(-X))
        program = lyc_fx.capture(model, (X,), dynamic_shapes=dynamic)
        lyc_fx.export(program, path)
        stored = torch.export.load(path)
        for each in (program, lyc_fx.capture(stored)):
            assert all(torch.equal(each(x), model(x)) for x in inputs)
            adapted = lyc_fx.splice(each, adapters(), STRENGTH)
            folded = lyc_fx.fold(adapted)
            assert all(torch.equal(found(x), merged(x)) for found in (adapted, folded) for x in inputs)
        for found in (folded, adapted) if run is branch else (folded,):
            lyc_fx.export(found, path)
            again = torch.export.load(path).module()
            assert all(torch.equal(again(x), merged(x)) for x in inputs)


def test_a_program_that_torch_cannot_store(tmp_path: Path) -> None:
    """Torch leaves the bare calls of this region in the graph, and cannot write them."""
    program = lyc_fx.capture(Net(branch_cast), (X,))
    with pytest.raises(Unsupported, match="cannot store this program: symbol '_enter_autocast'"):
        lyc_fx.export(program, tmp_path / "program.pt2")
    assert not any(tmp_path.iterdir())
