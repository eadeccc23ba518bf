"""diffusers' generations of keys, their cousins, and files that mix formats."""

import json

import pytest
import torch
from nets import one, random_for
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.errors import Unsupported
from lyc_fx.formats.diffusers import Diffusers


class Attention(nn.Module):
    """The projections of a diffusers attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attn1 = nn.ModuleDict({"to_q": nn.Linear(3, 5), "to_out": nn.ModuleList([nn.Linear(3, 5)])})


GENERATIONS = {
    "to_q.lora_A.weight": "to_q.lora_B.weight",
    "to_q.lora_A.default.weight": "to_q.lora_B.default.weight",
    "to_q.lora_A": "to_q.lora_B",
    "to_q.lora.down.weight": "to_q.lora.up.weight",
    "to_q.lora_linear_layer.down.weight": "to_q.lora_linear_layer.up.weight",
    "processor.to_q_lora.down.weight": "processor.to_q_lora.up.weight",
    "processor.to_out_lora.down.weight": "processor.to_out_lora.up.weight",
}


@pytest.mark.parametrize("component", ["", "unet.", "transformer.", "diffusion_model."])
@pytest.mark.parametrize("down", GENERATIONS)
def test_every_generation_of_keys(down: str, component: str) -> None:
    torch.manual_seed(0)
    a, b, model = torch.randn(2, 3), torch.randn(5, 2), Attention()
    name = "attn1.to_out.0.weight" if "to_out" in down else "attn1.to_q.weight"
    before = model.get_parameter(name).detach().clone()
    tensors = {f"{component}attn1.{down}": a, f"{component}attn1.{GENERATIONS[down]}": b}
    report = lyc_fx.merge(model, lyc_fx.load(tensors), 0.7)
    assert [(row.target, row.scale) for row in report.applied] == [(name, 1.0)]
    torch.testing.assert_close(model.get_parameter(name), before + 0.7 * b @ a)


def lora() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {"unet.attn1.to_q.lora_A.weight": torch.randn(2, 3), "unet.attn1.to_q.lora_B.weight": torch.randn(5, 2)}


def test_an_alpha_beside_the_factors_counts() -> None:
    [entry] = lyc_fx.load(lora() | {"unet.attn1.to_q.alpha": torch.tensor(3.0)}).entries
    assert entry.adapter.scale == 1.5
    assert entry.keys == (*lora(), "unet.attn1.to_q.alpha")


def test_the_training_s_configuration_in_the_header_counts(tmp_path) -> None:  # type: ignore[no-untyped-def]
    from safetensors.torch import save_file

    config = {"unet.r": 2, "unet.lora_alpha": 8, "unet.alpha_pattern": {"to_k": 2}}
    path = tmp_path / "a.safetensors"
    save_file(lora(), path, {"lora_adapter_metadata": json.dumps(config)})
    assert lyc_fx.load(path).entries[0].adapter.scale == 4


def test_a_file_that_mixes_formats() -> None:
    torch.manual_seed(0)
    model = Attention()
    tensors = lora() | {
        "lora_unet_attn1_to_out_0.lokr_w1": torch.randn(1, 3),
        "lora_unet_attn1_to_out_0.lokr_w2": torch.randn(5, 1),
    }
    report = lyc_fx.merge(model, lyc_fx.load(tensors))
    assert [(row.target, row.algorithm) for row in report.applied] == [
        ("attn1.to_q.weight", "locon"),
        ("attn1.to_out.0.weight", "lokr"),
    ]


def test_what_is_written_is_read_again_with_the_same_effect() -> None:
    adapter = random_for((LoCon, LoCon.layouts[0]), (5, 3), alpha=4.0)
    assert adapter is not None
    [entry] = lyc_fx.load(Diffusers().write(one(adapter, "unet.attn1.to_q")).tensors).entries
    assert isinstance(adapter, LoCon) and isinstance(entry.adapter, LoCon)
    torch.testing.assert_close(entry.adapter.delta((5, 3)), adapter.delta((5, 3)))


def test_what_diffusers_keys_cannot_hold_is_refused() -> None:
    adapter = random_for((LoKr, LoKr.layouts[0]), (6, 4))
    assert adapter is not None
    with pytest.raises(Unsupported, match="hold plain LoRA, not lokr"):
        Diffusers().write(one(adapter, "unet.attn1.to_q"))


@pytest.mark.parametrize("last", [False, True], ids=["first key", "last key"])
def test_a_key_of_lycoris_beside_lora_a_does_not_hide_whose_factors_they_are(last: bool) -> None:
    """diffusers lays the magnitude of a convolution `(1, out, 1, 1)`, wherever the file puts the bias."""
    factors = {
        "unet.conv.lora_A.weight": torch.randn(2, 3, 3, 1),
        "unet.conv.lora_B.weight": torch.randn(5, 2, 1, 1),
        "unet.conv.lora_magnitude_vector": torch.ones(1, 5, 1, 1),
    }
    bias = {"unet.conv.diff_b": torch.randn(5)}
    weight, _ = lyc_fx.load(factors | bias if last else bias | factors).entries
    assert isinstance(weight.adapter, LoCon) and weight.adapter.magnitude is not None
    assert weight.adapter.magnitude.shape == (5, 1, 1, 1)
