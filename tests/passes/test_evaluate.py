"""evaluate: a train capture becomes the exact evaluation graph."""

import copy

import pytest
import torch
from torch import Tensor, nn

import lyc_fx


class Net(nn.Module):
    """Dropout of several kinds, attention with dropout, batch and instance norm with running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
        self.norm = nn.BatchNorm1d(5)
        self.instance = nn.InstanceNorm1d(5, track_running_stats=True)
        self.drop = nn.Sequential(nn.Dropout(0.4), nn.AlphaDropout(0.2), nn.Dropout1d(0.2), nn.RReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.instance(self.norm(self.attention(x))))


def test_the_evaluation_graph_is_exact_and_training_is_untouched() -> None:
    torch.manual_seed(0)
    model = Net().double().train()
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    program = lyc_fx.capture(model, (x,))
    evaluated = lyc_fx.evaluate(program)
    # encoder: attention and three dropouts; batch norm and its counter; instance norm; the last four layers
    assert lyc_fx.history(evaluated)[-1].fired == 11
    assert not evaluated.training and program.training
    # The encoder's fused inference path rounds in another order; without it the two are the same to the bit.
    reference = copy.deepcopy(model).eval()
    torch.testing.assert_close(evaluated(x), reference(x), rtol=0, atol=0)
    before = {name: tensor.clone() for name, tensor in evaluated.state_dict().items()}
    evaluated(x)
    assert all(torch.equal(tensor, before[name]) for name, tensor in evaluated.state_dict().items())

    torch.manual_seed(1)
    wanted = copy.deepcopy(model)(x)
    torch.manual_seed(1)
    assert torch.equal(program(x), wanted)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_lose_their_dropout(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model, x = kind(4, 6, 2, dropout=0.9).double().train(), torch.randn(3, 5, 4, dtype=torch.float64)
    evaluated = lyc_fx.evaluate(lyc_fx.capture(model, (x,)))
    assert lyc_fx.history(evaluated)[-1].fired == 1
    torch.testing.assert_close(evaluated(x)[0], copy.deepcopy(model).eval()(x)[0], rtol=0, atol=0)


def test_a_decomposed_program_is_evaluated_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.BatchNorm1d(6)).double().train()
    x = torch.randn(7, 4, dtype=torch.float64)
    program = lyc_fx.capture(torch.export.export(model, (x,), strict=False).run_decompositions())
    evaluated = lyc_fx.evaluate(program)
    assert lyc_fx.history(evaluated)[-1].fired == 3
    before = {name: tensor.clone() for name, tensor in evaluated.state_dict().items()}
    torch.testing.assert_close(evaluated(x), copy.deepcopy(model).eval()(x), rtol=1e-12, atol=1e-12)
    assert all(torch.equal(tensor, before[name]) for name, tensor in evaluated.state_dict().items())


def test_an_evaluation_capture_is_left_alone() -> None:
    program = lyc_fx.capture(Net().eval(), (torch.randn(3, 5, 8),))
    evaluated = lyc_fx.evaluate(program)
    assert lyc_fx.history(evaluated)[-1].fired == 0
    assert lyc_fx.show(evaluated) == lyc_fx.show(program)


def test_what_is_no_program_is_refused() -> None:
    with pytest.raises(lyc_fx.WrongArgument, match=r"bring it through lyc_fx\.capture first"):
        lyc_fx.evaluate(Net())
