"""Where a file has no alpha: the scale is that of the training's configuration, by the rule of PEFT's forward."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, Unsupported

RANK, ALPHA, STRENGTH = 2, 8, 0.7
KEYS = ("", "transformer.", "unet.")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.ModuleDict({"to_q": nn.Linear(6, 15), "to_k": nn.Linear(6, 15)})])
        self.double()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def factors(kind: str) -> tuple[dict[str, Tensor], Tensor]:
    """Factors without alpha, and their product."""
    torch.manual_seed(1)
    if kind == "lora":
        a, b = rand(RANK, 6), rand(15, RANK)
        return {"lora_A.weight": a, "lora_B.weight": b}, b @ a
    if kind == "loha":
        f = {"hada_w1_a": rand(15, RANK), "hada_w1_b": rand(RANK, 6), "hada_w2_a": rand(15, RANK)}
        f["hada_w2_b"] = rand(RANK, 6)
        return f, (f["hada_w1_a"] @ f["hada_w1_b"]) * (f["hada_w2_a"] @ f["hada_w2_b"])
    f = {"lokr_w1": rand(3, 2)}
    if kind == "lokr":
        f |= {"lokr_w2_a": rand(5, RANK), "lokr_w2_b": rand(RANK, 3)}
        return f, torch.kron(f["lokr_w1"], f["lokr_w2_a"] @ f["lokr_w2_b"])
    f |= {"lokr_w2": rand(5, 3)}
    return f, torch.kron(f["lokr_w1"], f["lokr_w2"])


def config(kind: str, **more: Any) -> dict[str, Any]:
    name, alpha = ("LORA", "lora_alpha") if kind == "lora" else (kind[:4].upper(), "alpha")
    return {"peft_type": name, "r": RANK, alpha: ALPHA, "target_modules": ["to_q"], **more}


def written(folder: Path, prefix: str, kind: str, told: dict[str, Any], *, header: bool) -> Path:
    tensors = {f"{prefix}blocks.0.to_q.{key}": value for key, value in factors(kind)[0].items()}
    metadata = {"lora_adapter_metadata": json.dumps(told)} if header else None
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    if not header:
        (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder / "adapter_model.safetensors"


def scale_of(path: Path | str, kind: str) -> float:
    """The effect on a weight, divided by the product of the factors."""
    model = Net()
    before = model.blocks[0].to_q.weight.detach().clone()
    lyc_fx.merge(model, lyc_fx.load(path), STRENGTH)
    change, product = model.blocks[0].to_q.weight.detach() - before, factors(kind)[1]
    found = float((change * product).sum() / product.square().sum()) / STRENGTH
    torch.testing.assert_close(change, STRENGTH * found * product, rtol=1e-9, atol=1e-9)
    return round(found, 9)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr", "lokr full"])
@pytest.mark.parametrize("prefix", KEYS)
@pytest.mark.parametrize("header", [True, False], ids=["header", "adapter_config.json"])
def test_rank_and_alpha_of_the_training_count(kind: str, prefix: str, header: bool, tmp_path: Path) -> None:
    assert scale_of(written(tmp_path, prefix, kind, config(kind), header=header), kind) == ALPHA / RANK


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_the_directory_is_the_same_as_its_file(kind: str, tmp_path: Path) -> None:
    written(tmp_path, "", kind, config(kind), header=False)
    assert scale_of(tmp_path, kind) == ALPHA / RANK


@pytest.mark.parametrize(("prefix", "within"), [*((p, False) for p in KEYS), *((p, True) for p in KEYS if p)])
@pytest.mark.parametrize("pattern", ["blocks.0.to_q", "to_q", r"^blocks\.\d+\.to_q"])
def test_patterns_are_met_with_and_without_a_component(prefix: str, pattern: str, within: bool, tmp_path: Path) -> None:
    """diffusers' model.save_lora_adapter writes no component, its pipelines do: keys without one, so the patterns."""
    told = config("lora", alpha_pattern={"to_k": 100, pattern: 3}, rank_pattern={pattern: RANK}, r=16)
    if within:
        told = {f"{prefix or 'transformer.'}{key}": value for key, value in told.items()}
    assert scale_of(written(tmp_path, prefix, "lora", told, header=True), "lora") == 3 / RANK


def test_the_rank_of_full_factors_is_that_of_a_pattern(tmp_path: Path) -> None:
    told = config("lokr", rank_pattern={"blocks.0.to_q": 16})
    assert scale_of(written(tmp_path, "", "lokr full", told, header=True), "lokr full") == ALPHA / 16
    told = config("lokr", r=0)
    with pytest.raises(BadAdapter, match="r is 0"):
        lyc_fx.load(written(tmp_path, "", "lokr full", told, header=True))


def test_rslora_and_an_alpha_in_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "", "lora", config("lora", use_rslora=True), header=True)
    assert scale_of(path, "lora") == round(ALPHA / RANK**0.5, 9)
    tensors = {f"blocks.0.to_q.{key}": value for key, value in factors("lora")[0].items()}
    save_file(
        tensors | {"blocks.0.to_q.alpha": torch.tensor(3.0)},
        path,
        {"lora_adapter_metadata": json.dumps(config("lora"))},
    )
    assert scale_of(path, "lora") == 3 / RANK


def test_full_factors_of_lycoris_keep_their_scale(tmp_path: Path) -> None:
    tensors = {f"blocks.0.to_q.{key}": value for key, value in factors("lokr full")[0].items()}
    save_file(tensors | {"blocks.0.to_q.alpha": torch.tensor(3.0)}, tmp_path / "a.safetensors")
    assert scale_of(tmp_path / "a.safetensors", "lokr full") == 1


def test_a_configuration_that_means_something_else_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "", "lora", config("lora", use_qalora=True), header=False)
    with pytest.raises(Unsupported, match="QALoRA pools its input"):
        lyc_fx.load(path)
