"""capture(check=True): a program that is not the model is caught; one that is passes, and leaves no trace."""

import random

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.work import _multiplications, runs_quickly


class OtherPath(nn.Module):
    """Takes another path while it is exported, as some attention masks of transformers do."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.layer, self.by = nn.Linear(6, 15), by

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.layer(x)
        return {"same": x.relu(), "y": y * self.by if torch.compiler.is_exporting() else y}


def test_another_path_while_exporting_is_caught() -> None:
    x = torch.randn(3, 6)
    for by in (1.06, 0.0, float("nan")):
        with pytest.raises(CaptureError, match=r"is not the model: on the example, output 1 differs.*is_exporting"):
            lyc_fx.capture(OtherPath(by), (x,))
    lyc_fx.capture(OtherPath(1.0), (x,), dynamic_shapes={"x": "batch _"}, check=True)
    lyc_fx.capture(OtherPath(1.06), (x,), check=False)


def test_the_first_module_that_differs_is_named() -> None:
    x = torch.randn(3, 6)
    for by, where in ((1.06, "1.inner"), (1.0, None)):
        stack = nn.Sequential(nn.Linear(6, 6), Wrapper(OtherPath(by)), nn.Tanh())
        if where is None:
            lyc_fx.capture(stack, (x,), check=True)
            continue
        with pytest.raises(CaptureError, match=rf"first module that gives something else is {where}\. "):
            lyc_fx.capture(stack, (x,))


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)["y"]


class Draws(nn.Module):
    """Draws from Python's own generator, which torch's seed does not hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x + random.random()


class DrawsMore(nn.Module):
    """Draws once more while it runs than in its program."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            torch.rand(3)
        return nn.functional.dropout(x, 0.5, training=True)


def test_models_whose_results_hang_on_draws_are_not_compared() -> None:
    for model in (Draws(), DrawsMore()):
        lyc_fx.capture(model, (torch.randn(3, 6),), check=True)


def test_much_work_is_not_done_unasked() -> None:
    """The multiplications of linear layers and convolutions are counted, at the sizes of the example."""
    linear = lyc_fx.capture(nn.Linear(6, 15), (torch.randn(2, 7, 6),), dynamic_shapes={"input": "batch token _"})
    assert _multiplications(linear) == 2 * 7 * 6 * 15
    conv = lyc_fx.capture(nn.Conv2d(6, 8, (3, 2), groups=2), (torch.randn(2, 6, 9, 7),))
    assert _multiplications(conv) == 2 * 7 * 6 * 8 * 3 * 3 * 2
    with torch.device("meta"):
        wide = nn.Linear(20_000, 30_000)
        lyc_fx.capture(wide, (torch.randn(20, 20_000),))
    assert not runs_quickly(lyc_fx.capture(wide, (torch.empty(20, 20_000, device="meta"),)), ())
    assert runs_quickly(linear, torch.empty(2)) and not runs_quickly(linear, torch.empty(2, device="meta"))
    lyc_fx.capture(nn.Linear(6, 15), (torch.empty(3, 6, device="meta"),))  # an example without values


class Writes(nn.Module):
    """Writes to a buffer, its input and attributes, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.layer = nn.Linear(6, 15)
        self.register_buffer("calls", torch.zeros(()))
        self.last: Tensor | None = None

    def forward(self, x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, float]:
        x.add_(1)
        self.calls = self.calls + 1
        if not torch.compiler.is_exporting():
            self.last, self.first = x, x
        return self.layer(nn.functional.dropout(self.norm(x), 0.5, self.training)) * scale, scale


def test_a_check_leaves_no_trace() -> None:
    model, x = Writes().train(), torch.randn(4, 6)
    state, given = {name: t.clone() for name, t in model.state_dict().items()}, x.clone()
    random = torch.get_rng_state()
    lyc_fx.capture(model, (x,), {"scale": 0.5}, check=True)
    assert torch.equal(x, given) and torch.equal(random, torch.get_rng_state())
    assert model.last is None and not hasattr(model, "first")
    assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())


def test_what_cannot_be_compared_is_refused() -> None:
    x = torch.randn(3, 6)
    with torch.device("meta"):
        empty = nn.Linear(6, 15)
    with pytest.raises(CaptureError, match=r"weight has no values yet: load weights, or check=False"):
        lyc_fx.capture(empty, (x,), check=True)
    exported = torch.export.export(nn.Linear(6, 15), (x,))
    with pytest.raises(CaptureError, match="an ExportedProgram has none"):
        lyc_fx.capture(exported, check=True)
