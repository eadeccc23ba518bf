"""Bare parameters that a model multiplies from the right, `x @ P`: what adapters have for a Linear is for Pᵀ."""

import copy
from pathlib import Path

import pytest
import torch
from nets import Variant, certain, many, pairs, variant_id
from oracle import adapted
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.replace import Replace
from lyc_fx.errors import BadAdapter
from lyc_fx.inspection.shapes import shapes_of

STRENGTH = 0.7
SDXL = "conditioner.embedders.1.model."


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.c_fc(x)


class Text(nn.Module):
    """The text tower of OpenCLIP in small."""

    def __init__(self, out: int = 6) -> None:
        super().__init__()
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList([nn.Module()])
        self.transformer.resblocks[0].mlp = Block()
        self.positional_embedding = nn.Parameter(torch.randn(5, 6))
        self.text_projection = nn.Parameter(torch.randn(6, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.transformer.resblocks[0].mlp(x + self.positional_embedding) @ self.text_projection


class Vision(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.class_embedding = nn.Parameter(torch.randn(6))
        self.proj = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.class_embedding) @ self.proj


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.visual, self.text = Vision(), Text()

    def forward(self, x: Tensor) -> Tensor:
        return self.visual(x) * self.text(x)


def every_road(model: nn.Module, adapters: lyc_fx.AdapterSet, name: str, folder: Path) -> Tensor:
    """The weight that all roads agree on."""
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, STRENGTH)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    folded = lyc_fx.fold(spliced, check=True)
    save_file(model.state_dict(), folder / "base.safetensors")
    lyc_fx.fold_checkpoint(folder / "base.safetensors", adapters, folder / "out.safetensors", STRENGTH)
    merged = live.get_parameter(name).detach()
    assert torch.equal(folded.get_parameter(name), merged)
    assert torch.equal(load_file(folder / "out.safetensors")[name], merged)
    torch.testing.assert_close(lyc_fx.lower(spliced, check=True)(x), live(x), rtol=1e-9, atol=1e-9)
    return merged


SQUARE = [pair for pair in pairs([(6, 6)]) if "magnitude" not in pair[0][1]]
"""A magnitude does not tell its side where they are equal"""
FEW = ("locon", "lokr", "full", "replace", "ia3")
SPELLINGS = (
    "lora_te2_text_projection",
    "text_encoder_2.text_projection",
    "text_encoders.clip_g.transformer.text_projection",
    "text_encoders.clip_g.text_projection",
    f"{SDXL}text_projection",
)


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize(("variant", "shape"), [*SQUARE, *pairs([(4, 6)])], ids=variant_id)
def test_the_text_projection_of_sdxl(spelling: str, variant: Variant, shape: tuple[int, int], tmp_path: Path) -> None:
    adapter = certain(variant, shape, dtype=torch.float64)
    torch.manual_seed(1)
    weight = torch.randn(shape[::-1], dtype=torch.float64)
    save_file({f"{SDXL}text_projection": weight}, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", many(**{spelling: adapter}), out, STRENGTH)
    got = load_file(out)[f"{SDXL}text_projection"]
    torch.testing.assert_close(got, adapted(adapter, weight.t(), STRENGTH).t(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["text.text_projection", "visual.proj"])
@pytest.mark.parametrize("variant", [v for v, _ in SQUARE if v[0].name in FEW], ids=variant_id)
def test_roads_agree(variant: Variant, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Pair().double()
    adapter = certain(variant, (6, 6), dtype=torch.float64)
    merged = every_road(model, many(**{name: adapter}), name, tmp_path)
    wanted = adapted(adapter, model.get_parameter(name).t(), STRENGTH).t()
    torch.testing.assert_close(merged, wanted, rtol=1e-12, atol=1e-12)


def test_a_projection_to_another_size_and_a_model_s_shapes(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Text(out=4).double()
    diff = torch.randn(4, 6, dtype=torch.float64)
    merged = every_road(model, many(text_projection=Full(diff=diff)), "text_projection", tmp_path)
    torch.testing.assert_close(merged, model.text_projection + STRENGTH * diff.t())
    assert shapes_of(model)["text_projection"] == (4, 6)
    assert shapes_of(tmp_path / "base.safetensors")["text_projection"] == (4, 6)


def test_positions_have_two_names(tmp_path: Path) -> None:
    torch.manual_seed(1)
    text = Text().double()
    diff = torch.randn(5, 6, dtype=torch.float64)
    save_file({f"{SDXL}{key}": tensor for key, tensor in text.state_dict().items()}, tmp_path / "base.safetensors")
    names = (
        "text_encoder_2.text_model.embeddings.position_embedding",
        "lora_te2_text_model_embeddings_position_embedding",
    )
    for number, name in enumerate(names):
        out = tmp_path / f"{number}.safetensors"
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", many(**{name: Full(diff=diff)}), out, STRENGTH)
        got = load_file(out)[f"{SDXL}positional_embedding"]
        torch.testing.assert_close(got, text.positional_embedding + STRENGTH * diff)
    diffusers = {
        "text_model.embeddings.position_embedding.weight": torch.randn(5, 6, dtype=torch.float64),
        "text_model.encoder.layers.0.self_attn.q_proj.weight": torch.randn(6, 6, dtype=torch.float64),
    }
    save_file(diffusers, tmp_path / "base.safetensors")
    out = tmp_path / "back.safetensors"
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", many(positional_embedding=Full(diff=diff)), out, STRENGTH)
    key = "text_model.embeddings.position_embedding.weight"
    torch.testing.assert_close(load_file(out)[key], diffusers[key] + STRENGTH * diff)


def test_near_misses_stay_as_they_are(tmp_path: Path) -> None:
    """A Linear of that name, a bare `proj` elsewhere, one that a layer has as (out, in), and what the user says."""
    value = torch.randn(6, 6, dtype=torch.float64)
    for name in ("text_projection.weight", "decoder.proj", "text_projection_norm"):
        save_file({name: torch.zeros_like(value)}, tmp_path / "base.safetensors")
        adapters = many(**{name.removesuffix(".weight"): Replace(value=value)})
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors")
        assert torch.equal(load_file(tmp_path / "out.safetensors")[name], value)
    save_file({"text_projection": torch.zeros_like(value)}, tmp_path / "base.safetensors")
    adapters = many(text_projection=Full(diff=value))
    out = tmp_path / "said.safetensors"
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters, out, transposed=["!text_projection"])
    assert torch.equal(load_file(out)["text_projection"], value)

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_projection = nn.Parameter(torch.zeros(6, 6, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.linear(x, self.text_projection)

    program = lyc_fx.splice(lyc_fx.capture(Other(), (value,)), adapters, STRENGTH)
    torch.testing.assert_close(program(value), STRENGTH * value @ value.t())
    with pytest.raises(BadAdapter, match="does not fit text_projection"):
        lyc_fx.merge(Text(out=4).double(), many(text_projection=Full(diff=torch.randn(5, 6))))


def test_a_projection_that_is_no_matrix_is_not_turned() -> None:
    class Stacked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text_projection = nn.Parameter(torch.randn(2, 6, 4, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.text_projection

    model, x, diff = Stacked(), torch.randn(5, 6, dtype=torch.float64), torch.randn(2, 6, 4, dtype=torch.float64)
    adapters = many(text_projection=Full(diff=diff))
    wanted = model.text_projection.detach() + STRENGTH * diff
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, STRENGTH), check=True)
    torch.testing.assert_close(folded.get_parameter("text_projection").detach(), wanted)
    lyc_fx.merge(model, adapters, STRENGTH)
    torch.testing.assert_close(model.text_projection.detach(), wanted)
