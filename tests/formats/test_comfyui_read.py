"""Reading ComfyUI's keys: spellings of factors, differences, and `reshape_weight`."""

import pytest
import torch
from layouts import random
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.comfyui import Comfyui

SPELLINGS = {
    "x.lora_down.weight": "x.lora_up.weight",
    "x_lora.down.weight": "x_lora.up.weight",
    "x.lora_A.weight": "x.lora_B.weight",
    "x.lora.down.weight": "x.lora.up.weight",
    "x.lora_A": "x.lora_B",
    "x.lora_linear_layer.down.weight": "x.lora_linear_layer.up.weight",
    "x.lora_A.default.weight": "x.lora_B.default.weight",
}


@pytest.mark.parametrize("down", SPELLINGS)
@pytest.mark.parametrize("beside", [False, True], ids=["first", "last"])
def test_every_spelling_with_a_bias_alpha_and_an_idle_reshape(down: str, beside: bool) -> None:
    model = nn.ModuleDict({"x": nn.Linear(3, 5)}).double()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    factors = {down: random(2, 3), SPELLINGS[down]: random(5, 2)}
    others = {"x.alpha": torch.tensor(3.0), "x.diff_b": random(5), "x.reshape_weight": torch.tensor([5, 3])}
    tensors = factors | others if beside else others | factors
    adapters = lyc_fx.load({f"diffusion_model.{key}": tensor for key, tensor in tensors.items()})
    assert sorted(k for e in adapters.entries for k in e.keys) == sorted(f"diffusion_model.{key}" for key in tensors)
    report = lyc_fx.merge(model, adapters, 0.7)
    assert {(row.target, row.algorithm, row.scale) for row in report.applied} == {
        ("x.weight", "locon", 1.5),
        ("x.bias", "full", 1.0),
    }
    want = base["x.weight"] + 0.7 * 1.5 * factors[SPELLINGS[down]] @ factors[down]
    torch.testing.assert_close(model["x"].weight.detach(), want)
    torch.testing.assert_close(model["x"].bias.detach(), base["x.bias"] + 0.7 * others["x.diff_b"])


def test_differences_are_added_times_strength() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(3, 5), "norm": nn.LayerNorm(5)}).double()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {"fc.diff": random(5, 3), "fc.diff_b": random(5), "norm.w_norm": random(5) + 1, "norm.b_norm": random(5)}
    report = lyc_fx.merge(model, lyc_fx.load({f"diffusion_model.{k}": t for k, t in tensors.items()}), 0.3)
    assert {row.target for row in report.applied} == set(base)
    for (name, before), key in zip(base.items(), tensors, strict=True):
        torch.testing.assert_close(model.state_dict()[name], before + 0.3 * tensors[key])


def reshaped(*shape: int) -> AdapterSet:
    factors = {"x.lora_up.weight": random(5, 2), "x.lora_down.weight": random(2, 4)}
    return lyc_fx.load(factors | {"x.reshape_weight": torch.tensor(shape)})


def test_a_reshape_that_would_pad_the_weight_is_refused() -> None:
    model = nn.ModuleDict({"x": nn.Linear(3, 5)}).double()
    before = model["x"].weight.clone()
    message = r"x: is for x.weight padded with zeros from \(5, 3\) to \(5, 4\) \(reshape_weight\).*of that shape"
    with pytest.raises(BadAdapter, match=message):
        lyc_fx.merge(model, reshaped(5, 4))
    assert torch.equal(model["x"].weight, before)
    wide = nn.ModuleDict({"x": nn.Linear(4, 5)}).double()
    assert [row.target for row in lyc_fx.merge(wide, reshaped(5, 4)).applied] == ["x.weight"]
    assert Comfyui().write(reshaped(5, 4)).tensors["x.reshape_weight"].tolist() == [5, 4]


@pytest.mark.parametrize(
    "sizes", [torch.tensor([]), torch.tensor([5, 0]), torch.tensor([5, 2.5]), torch.tensor([torch.inf])]
)
def test_a_reshape_that_is_no_shape_is_refused(sizes: Tensor) -> None:
    factors = {"x.lora_up.weight": random(5, 2), "x.lora_down.weight": random(2, 3)}
    with pytest.raises(BadAdapter, match=r"x: reshape_weight \[.*\] is no shape"):
        lyc_fx.load(factors | {"x.reshape_weight": sizes})
    with pytest.raises(BadAdapter, match="x: there is a reshape_weight, but no factor"):
        lyc_fx.load({"x.reshape_weight": torch.tensor([5, 3])})


def test_two_spellings_of_one_factor_are_refused() -> None:
    factors = {"x.lora_up.weight": random(5, 2), "x.lora_down.weight": random(2, 3), "x.lora_B.weight": random(5, 2)}
    with pytest.raises(BadAdapter, match=r"x: x.lora_up.weight and x.lora_B.weight are the same factor"):
        lyc_fx.load(factors)
