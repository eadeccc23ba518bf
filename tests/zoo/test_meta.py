"""Capture of models without weights: on the meta device, with the weights loaded into the program afterwards."""

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel

import lyc_fx
from lyc_fx.errors import InvalidGraph
from tests.zoo import diffusers_models, torch_models, transformers_models
from tests.zoo.adapted import adapters_for, called, pairs
from tests.zoo.case import Case
from tests.zoo.roads import STRENGTH, check_fold, check_splice, same, weights_of

_NAMES = ("flux", "gpt2", "vit", "resnet", "tied", "repeated", "weight norm, parametrized")
_ALL = (*diffusers_models.CASES, *transformers_models.CASES, *torch_models.CASES)


def _on_meta(case: Case) -> torch.nn.Module:
    with torch.device("meta"):
        return case.build().double().eval()


@pytest.mark.parametrize("case", [case for case in _ALL if case.name in _NAMES], ids=str)
def test_weights_are_loaded_after_capture(case: Case) -> None:
    model = case.model()
    captured = lyc_fx.capture(_on_meta(case), (), case.call(0), case.shapes)
    weights = weights_of(case, model)
    adapters = adapters_for(weights, torch.float64)
    with pytest.raises(InvalidGraph, match="has no values yet: load weights"):
        lyc_fx.fold(lyc_fx.splice(captured, adapters, STRENGTH))

    captured.load_state_dict(model.state_dict(), assign=True)
    adapted = lyc_fx.splice(captured, adapters, STRENGTH)
    folded = lyc_fx.fold(adapted)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    check_splice(adapted, weights)
    check_fold(folded, captured, live)
    for one, other in pairs(called(live, case.call(1)), called(folded, case.call(1))):
        same(one, other, exact=case.exact)


def test_buffers_outside_the_state_dict_are_the_users_to_give() -> None:
    """Llama's rotary frequencies are in no state dict: weights fold without them, and they can be set by name."""
    case = next(case for case in _ALL if case.name == "llama")
    model = case.model()
    captured = lyc_fx.capture(_on_meta(case), (), case.call(0), case.shapes)
    captured.load_state_dict(model.state_dict(), assign=True)
    captured.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq
    for one, other in pairs(called(model, case.call(1)), called(captured, case.call(1))):
        same(one, other, exact=True)


def test_real_size() -> None:
    """The UNet of SD 1.5, 0.86 billion parameters, without the memory that they take."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    inputs = {
        "sample": torch.randn(2, 4, 64, 64, device="meta"),
        "timestep": torch.tensor(1, device="meta"),
        "encoder_hidden_states": torch.randn(2, 77, 768, device="meta"),
    }
    captured = lyc_fx.capture(unet, (), inputs)
    assert sum(parameter.numel() for parameter in captured.parameters()) == 859_520_964
    text = lyc_fx.show(captured)
    assert (text.count("aten.linear("), text.count("aten.conv2d(")) == (184, 98)
