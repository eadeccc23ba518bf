"""How a capture is called, and the mode that it is for."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from one_layer import STRENGTH, factors, x
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.mode import mode_matters


class Modal(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.l, self.inner = nn.Linear(6, 15), inner
        self.double()

    def forward(self, v: Tensor) -> Tensor:
        return self.inner(self.l(v))


class Branch(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return v * 2 if self.training else v


MODAL: dict[str, Callable[[], nn.Module]] = {
    "dropout": lambda: nn.Dropout(0.5), "batch norm": lambda: nn.BatchNorm1d(15), "a branch": Branch,
}  # fmt: skip


@pytest.mark.parametrize("kind", MODAL)
@pytest.mark.parametrize("training", [True, False])
def test_the_other_mode_is_refused_where_it_matters(kind: str, training: bool) -> None:
    model = Modal(MODAL[kind]()).train(training)
    program = lyc_fx.capture(model, (x(),))
    spliced = lyc_fx.splice(program, lyc_fx.load(factors()), STRENGTH)
    for each in (program, spliced, lyc_fx.lower(spliced), lyc_fx.fold(spliced)):
        assert each.training is training
        each(x())
        each.train(training)(x())
        with pytest.raises(CaptureError, match=f"captured in {'training' if training else 'evaluation'} mode"):
            each.train(not training)(x())
        each.train(training)(x())


def test_the_mode_of_a_model_that_has_none_is_free() -> None:
    model = Modal(nn.GELU()).train()
    program = lyc_fx.capture(model, (x(),))
    assert torch.equal(program.eval()(x()), model(x()))
    assert not mode_matters(model) and mode_matters(nn.Sequential(nn.Sequential(Branch())))


def test_an_evaluated_program_is_one_for_evaluation() -> None:
    model = Modal(nn.Dropout(0.5)).train()
    program = lyc_fx.capture(model, (x(),))
    evaluated = lyc_fx.evaluate(program)
    assert torch.equal(evaluated(x()), model.eval()(x())) and not evaluated.training
    with pytest.raises(CaptureError, match="evaluation mode"):
        evaluated.train()(x())
    program(x())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda m: lyc_fx.capture(m, torch.randn(1, 6)), r"capture\(model, \(x,\)\)"),
        (lambda m: lyc_fx.capture(m, torch.randn(3, 6)), r"capture\(model, \(x,\)\)"),
        (lambda m: lyc_fx.capture(m, {"input": torch.randn(3, 6)}), r"capture\(model, \(\), inputs\)"),
        (lambda m: lyc_fx.capture(m, 3), "args is a int"),
        (lambda m: lyc_fx.capture(m, (torch.randn(3, 6),), "auto"), "dynamic_shapes='auto'"),
        (lambda m: lyc_fx.capture(m, (), [torch.randn(3, 6)]), "inputs by name"),
        (lambda m: lyc_fx.capture(m.forward, (torch.randn(3, 6),)), "capture takes an nn.Module"),
        (lambda m: lyc_fx.capture(m), "missing a required argument"),
    ],
)
def test_inputs_in_the_wrong_place_are_said(given: Callable[[nn.Module], Any], said: str) -> None:
    with pytest.raises(CaptureError, match=said):
        given(nn.Linear(6, 4))


def test_a_list_of_inputs_is_taken_as_it_was() -> None:
    assert lyc_fx.capture(nn.Linear(6, 4), [torch.randn(3, 6)])(torch.randn(3, 6)).shape == (3, 4)  # type: ignore[arg-type]
