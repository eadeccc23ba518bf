"""Plain torch modules that put their weights to unusual uses."""

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import lyc_fx
from lyc_fx.errors import CaptureError
from tests.zoo.case import Case
from tests.zoo.roads import check
from tests.zoo.torch_models import CASES, Blocks, FusedQKV, rows


@pytest.mark.parametrize("case", CASES, ids=str)
def test_module(case: Case) -> None:
    model = case.model()
    check(case, model, lyc_fx.capture(model, (), case.call(0), case.shapes, check=True))


def test_exported_program() -> None:
    case = Case("exported", FusedQKV, rows)
    model = case.model()
    program = torch.export.export(model, (), case.call(0), dynamic_shapes={"x": {0: Dim.AUTO, 1: Dim.AUTO}})
    check(case, model, lyc_fx.capture(program))


def test_autocast_block_stays_and_grad_block_goes() -> None:
    captured = lyc_fx.capture(Blocks(), (torch.randn(2, 3, 16),))
    text = lyc_fx.show(captured)
    assert text.count("wrap_with_autocast(") == 1
    assert "wrap_with_set_grad_enabled" not in text


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if x.sum() > 0 else x


def test_branch_on_values_is_refused_with_advice() -> None:
    with pytest.raises(CaptureError, match=r"(?s)Branching cannot be captured.*branches on a tensor's values.*merge"):
        lyc_fx.capture(Branching(), (torch.randn(2, 4),))
