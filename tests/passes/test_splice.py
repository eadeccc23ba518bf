"""splice: fires once per weight, leaves the rest alone, and prints as the formula."""

import pytest
import torch
from golden import expect
from nets import CASES, many, one, random_for
from oracle import delta
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import FAMILIES
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter, InvalidGraph

LOCON = next(f for f in FAMILIES if f.name == "locon")
LINEAR = CASES[0]


class Tied(nn.Module):
    """An embedding and a head of one tensor, and a Linear under two names that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.emb.weight
        self.fc = nn.Linear(6, 6)
        self.alias = self.fc

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.alias(self.fc(self.emb(ids))))


def plain(shape: tuple[int, ...], seed: int = 0) -> Adapter:
    adapter = random_for((LOCON, LOCON.layouts[0]), shape, seed=seed)
    assert adapter is not None
    return adapter


def test_the_graph_is_the_formula() -> None:
    program = lyc_fx.capture(LINEAR.net(torch.bfloat16), (LINEAR.x(torch.bfloat16),))
    adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.7)
    assert [str(step) for step in lyc_fx.history(adapted)] == ["splice: fired 1 times"]
    expect(
        lyc_fx.show(adapted, shapes=True),
        """
        x = input  # bfloat16 (2, 5, 6)
        to = aten.to.dtype(layer.weight, torch.float64)  # float64 (15, 6)
        to_1 = aten.to.dtype(lyc_fx.0.layer.weight.up, torch.float64)  # float64 (15, 3)
        to_2 = aten.to.dtype(lyc_fx.0.layer.weight.down, torch.float64)  # float64 (3, 6)
        mul = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)  # float64 ()
        matmul = aten.matmul(to_1, to_2)  # float64 (15, 6)
        mul_1 = aten.mul.Tensor(matmul, mul)  # float64 (15, 6)
        add = aten.add.Tensor(to, mul_1)  # float64 (15, 6)
        to_3 = aten.to.dtype(add, torch.bfloat16)  # bfloat16 (15, 6)
        linear = aten.linear(x, to_3, layer.bias)  # bfloat16 (2, 5, 15)
        return (linear)
        """,
    )


def test_inputs_are_not_changed_and_tensors_are_shared() -> None:
    model = LINEAR.net()
    program = lyc_fx.capture(model, (LINEAR.x(),))
    before = lyc_fx.show(program)
    adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.7)
    assert lyc_fx.show(program) == before
    assert program.get_parameter("layer.weight") is model.layer.weight
    assert adapted.get_parameter("layer.weight") is model.layer.weight


def test_strength_zero_inserts_nothing() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    with pytest.warns(NothingChanged, match="strength is 0"):
        adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.0)
    assert lyc_fx.history(adapted)[-1].fired == 0
    assert lyc_fx.show(adapted) == lyc_fx.show(program)
    assert sorted(adapted.state_dict()) == sorted(program.state_dict())


def test_strength_is_a_buffer_that_changes_the_program() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.7)
    adapted.get_buffer("lyc_fx.0.strength").fill_(-1.3)
    again = lyc_fx.splice(program, one(plain((15, 6))), -1.3)
    assert torch.equal(adapted(LINEAR.x()), again(LINEAR.x()))


def test_gradients_flow_to_the_factors_and_to_the_base() -> None:
    model = LINEAR.net()
    adapted = lyc_fx.splice(lyc_fx.capture(model, (LINEAR.x(),)), one(plain((15, 6))), 0.7)
    adapted(LINEAR.x()).square().sum().backward()
    gradients = {n: p.grad for n, p in adapted.named_parameters()}
    assert set(gradients) == {
        "layer.weight",
        "layer.bias",
        "lyc_fx.0.layer.weight.up",
        "lyc_fx.0.layer.weight.down",
    }
    for name, gradient in gradients.items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_a_tied_weight_is_adapted_where_its_module_is_called() -> None:
    model = Tied().double()
    ids = torch.tensor([[1, 2, 5], [0, 3, 10]])
    program = lyc_fx.capture(model, (ids,))
    adapter = plain((11, 6))
    adapted = lyc_fx.splice(program, one(adapter, "lycoris_head"), 0.7)
    changed = model.head.weight + 0.7 * delta(adapter, (11, 6))
    wanted = model.fc(model.fc(model.emb(ids))) @ changed.t()
    torch.testing.assert_close(adapted(ids), wanted, rtol=1e-12, atol=1e-12)
    folded = lyc_fx.fold(adapted, check=True)
    torch.testing.assert_close(folded(ids), wanted, rtol=1e-12, atol=1e-12)
    assert torch.equal(folded.get_parameter("emb.weight"), model.emb.weight)
    assert "untied" in str(lyc_fx.report(folded))
    assert torch.equal(model.emb.weight, program.get_parameter("head.weight"))


@pytest.mark.parametrize("name", ["lycoris_fc", "alias", "fc.weight", "lora_unet_alias"])
def test_a_module_of_two_names_is_one_weight(name: str) -> None:
    model = Tied().double()
    ids = torch.tensor([[1, 2, 5], [0, 3, 10]])
    adapted = lyc_fx.splice(lyc_fx.capture(model, (ids,)), one(plain((6, 6)), name), 0.7)
    assert lyc_fx.history(adapted)[-1].fired == 1
    folded = lyc_fx.fold(adapted, check=True)
    assert folded.get_parameter("fc.weight") is folded.get_parameter("alias.weight")
    model.load_state_dict(folded.state_dict())
    torch.testing.assert_close(model(ids), folded(ids), rtol=1e-12, atol=1e-12)


def test_a_second_splice_is_refused() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    adapted = lyc_fx.splice(program, one(plain((15, 6))), 0.7)
    with pytest.raises(InvalidGraph, match="all at once"):
        lyc_fx.splice(adapted, one(plain((15, 6))), 0.7)


def test_unmatched_adapters_are_errors_that_name_the_nearest() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    with pytest.raises(BadAdapter, match=r"lycoris_layr: no such weight.*nearest: layer.weight"):
        lyc_fx.splice(program, one(plain((15, 6)), "lycoris_layr"), 0.7)
    adapted = lyc_fx.splice(program, many(lycoris_layr=plain((15, 6)), lycoris_layer=plain((15, 6))), strict=False)
    assert lyc_fx.history(adapted)[-1].fired == 1
    assert lyc_fx.report(adapted).unused == ("lycoris_layr.factors",)
