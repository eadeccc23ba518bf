"""A model that reshapes its weight before using it: only the adapter's formula is folded, never the model's own."""

import copy

import pytest
import torch
from nets import one, random_for
from torch import Tensor, nn
from torch.nn.functional import linear

import lyc_fx
from lyc_fx.algorithms.locon import LoCon


class Turned(nn.Module):
    """A square weight as it is and transposed: both are constants of the graph, of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) @ self.layer.weight.t()


class Sliced(nn.Module):
    """A fused projection of which each part is used alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 18, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (linear(x, part) for part in self.layer.weight.chunk(3))
        return query * key.sigmoid() + value


class OnlyTurned(nn.Module):
    """A square weight of which nobody uses the original."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.layer.weight.t().contiguous()


@pytest.mark.parametrize("build", [Turned, Sliced, OnlyTurned])
def test_a_weight_that_the_model_reshapes(build: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x = build().double(), torch.randn(2, 6, dtype=torch.float64)
    adapter = random_for((LoCon, LoCon.layouts[0]), tuple(model.layer.weight.shape))
    assert adapter is not None
    program = lyc_fx.capture(model, (x,))
    folded = lyc_fx.fold(lyc_fx.splice(program, one(adapter), 0.7), check=True)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, one(adapter), 0.7)
    assert lyc_fx.show(folded) == lyc_fx.show(program)
    assert torch.equal(folded.get_parameter("layer.weight"), live.layer.weight)
    assert torch.equal(folded(x), live(x))
