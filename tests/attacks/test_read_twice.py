"""A weight that is read by a layer and by something else: it is made at each call anyway, and gets no chain."""

import pytest
import torch
from nets import certain, many
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.graph.layers import sites

LOCON = next(f for f in FAMILIES if f.name == "locon")


class Net(nn.Module):
    def __init__(self, second: str) -> None:
        super().__init__()
        self.layer, self.second = nn.Linear(6, 6), second

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        if self.second == "layer":
            return self.layer(torch.tanh(y))
        return y @ self.layer.weight.t() if self.second == "matmul" else y + self.layer.weight.sum()


@pytest.mark.parametrize(("second", "chains"), [("layer", 2), ("matmul", 2), ("norm", 0)])
def test_a_chain_where_layers_alone_read_the_weight(second: str, chains: int) -> None:
    torch.manual_seed(0)
    model, x = Net(second).double(), torch.randn(3, 6, dtype=torch.float64)
    adapters = many(layer=certain((LOCON, LOCON.layouts[0]), (6, 6), dtype=torch.float64))
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,), check=True), adapters, 0.7)
    lowered = lyc_fx.lower(spliced, check=True)
    [step] = [step for step in lyc_fx.history(lowered) if step.name == "distribute"]
    assert step.fired == chains
    assert bool(step.misses) == (chains == 0)
    assert len(list(sites(lowered.graph))) == len(list(sites(spliced.graph))) + 2 * chains
    torch.testing.assert_close(lowered(x), spliced(x), rtol=1e-11, atol=1e-11)
