"""fold: same keys, same operators, only adapted cones; and what it refuses."""

import pytest
import torch
from nets import CASES, one, random_for
from oracle import delta
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import FAMILIES
from lyc_fx.errors import InvalidGraph

LOCON = next(f for f in FAMILIES if f.name == "locon")
LINEAR = CASES[0]


def plain(shape: tuple[int, ...]) -> Adapter:
    adapter = random_for((LOCON, LOCON.layouts[0]), shape)
    assert adapter is not None
    return adapter


class WithTable(nn.Module):
    """A constant table of the model's own, batch norm's counters, and random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 15)
        self.norm = nn.BatchNorm1d(15)
        self.register_buffer("scale", torch.arange(1.0, 16))
        self.register_buffer("hidden", torch.ones(15), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.fc(x)) * (self.scale * 2 + self.hidden).sqrt()


def test_a_models_own_tables_are_left_alone() -> None:
    model, x = WithTable().double().eval(), torch.randn(4, 6, dtype=torch.float64)
    program = lyc_fx.capture(model, (x,))
    folded = lyc_fx.fold(lyc_fx.splice(program, one(plain((15, 6)), "lycoris_fc"), 0.7), check=True)
    assert lyc_fx.show(folded) == lyc_fx.show(program)
    assert "aten.sqrt" in lyc_fx.show(folded)
    assert list(folded.state_dict()) == list(model.state_dict())
    assert "hidden" not in folded.state_dict()
    model.load_state_dict(folded.state_dict())
    assert torch.equal(model(x), folded(x))


def test_without_adapter_nothing_happens() -> None:
    program = lyc_fx.capture(WithTable(), (torch.randn(4, 6),))
    folded = lyc_fx.fold(program, check=True)
    assert lyc_fx.history(folded)[-1].fired == 0
    assert lyc_fx.show(folded) == lyc_fx.show(program)
    assert folded.get_parameter("fc.weight") is program.get_parameter("fc.weight")


@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_weight_that_the_model_computes(wrap) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    model = nn.Sequential(wrap(nn.Linear(6, 15))).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    program = lyc_fx.capture(model, (x,))
    adapter = plain((15, 6))
    folded = lyc_fx.fold(lyc_fx.splice(program, one(adapter, "lycoris_0"), 0.7), check=True)
    model(x)  # weight_norm of the old style computes its weight at each call
    weight = model[0].weight + 0.7 * delta(adapter, (15, 6))
    torch.testing.assert_close(folded(x), nn.functional.linear(x, weight, model[0].bias), rtol=1e-12, atol=1e-12)
    assert lyc_fx.show(folded) == lyc_fx.show(program)
    assert list(folded.state_dict()) == list(model.state_dict())
    lyc_fx.merge(model, one(adapter, "lycoris_0"), 0.7)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_lowered_program_is_refused() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    lowered = lyc_fx.lower(lyc_fx.splice(program, one(plain((15, 6))), 0.7), check=True)
    with pytest.raises(InvalidGraph, match=r"fold what lyc_fx.splice returned"):
        lyc_fx.fold(lowered, check=True)


def test_weights_without_values_are_refused_and_may_be_loaded() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 15))
    program = lyc_fx.capture(model, (torch.randn(4, 6),))
    adapted = lyc_fx.splice(program, one(plain((15, 6)), "lycoris_0"), 0.7)
    with pytest.raises(InvalidGraph, match=r"0\.weight has no values yet: load weights"):
        lyc_fx.fold(adapted, check=True)
    real = nn.Sequential(nn.Linear(6, 15))
    adapted.load_state_dict(real.state_dict(), strict=False, assign=True)
    folded = lyc_fx.fold(adapted, check=True)
    lyc_fx.merge(real, one(plain((15, 6)), "lycoris_0"), 0.7)
    x = torch.randn(4, 6)
    assert torch.equal(folded(x), real(x))


def test_folding_reads_the_factors_as_they_are_now() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.7)
    with torch.no_grad():
        adapted.get_parameter("lyc_fx.0.layer.weight.up").mul_(2)
        adapted.get_buffer("lyc_fx.0.strength").fill_(0.35)
    again = lyc_fx.fold(lyc_fx.splice(program, one(plain((15, 6))), 0.7), check=True)
    assert torch.equal(
        lyc_fx.fold(adapted, check=True).get_parameter("layer.weight"), again.get_parameter("layer.weight")
    )
