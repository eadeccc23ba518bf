"""VeRA and HRA against PEFT: on several layers that share A and B, Conv1D, square kernels; and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import BadAdapter

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from odd_layers import Odd  # noqa: E402
from peft_models import INPUTS, Gpt, made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


LINEAR = ["fc", "bare", "wide"]
CASES: dict[str, tuple[type[nn.Module], str, dict[str, Any]]] = {
    "vera": (Odd, "VeraConfig", {"r": 3, "target_modules": LINEAR}),
    "vera of some, with biases": (Odd, "VeraConfig", {"r": 2, "target_modules": ["bare", "wide"], "bias": "vera_only"}),
    "vera of Conv1D": (Gpt, "VeraConfig", {"r": 3, "target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "hra": (Odd, "HRAConfig", {"r": 4, "target_modules": [*LINEAR, "conv"]}),
    "hra of an odd rank, with biases": (
        Odd,
        "HRAConfig",
        {"r": 3, "target_modules": ["fc", "conv"], "bias": "hra_only"},
    ),
    "hra, all biases": (Odd, "HRAConfig", {"r": 2, "target_modules": ["fc", "conv"], "bias": "all"}),
    "hra of more columns than inputs": (Odd, "HRAConfig", {"r": 9, "target_modules": ["fc"]}),
    "hra, Gram-Schmidt": (
        Odd,
        "HRAConfig",
        {"r": 5, "target_modules": [*LINEAR, "conv"], "apply_GS": True, "init_weights": False},
    ),
}


def trained(name: str, folder: Path) -> tuple[nn.Module, nn.Module]:
    """The base, and PEFT's model that is not merged, both in float64."""
    kind, config, settings = CASES[name]
    base = made(kind)
    train(base, config, folder, **settings)
    return base.double(), peft.PeftModel.from_pretrained(copy.deepcopy(base).double(), str(folder)).double().eval()


def outputs(model: nn.Module, kind: type[nn.Module]) -> list[Tensor]:
    with torch.no_grad():
        found = model(*(each.double() for each in INPUTS[kind]()))
    return list(found) if isinstance(found, tuple) else [found]


@pytest.mark.parametrize("name", CASES)
def test_merged_is_peft_s_forward(name: str, tmp_path: Path) -> None:
    base, theirs = trained(name, tmp_path)
    kind, _, settings = CASES[name]
    live = copy.deepcopy(base)
    adapters = lyc_fx.load(tmp_path)
    report = lyc_fx.merge(live, adapters)
    assert {f"{module}.weight" for module in settings["target_modules"]} <= {*targets(report)}
    assert report.unused == () and adapters.unread == ()
    for ours, wanted, before in zip(outputs(live, kind), outputs(theirs, kind), outputs(base, kind), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)
        touched = "conv" in settings["target_modules"] or ours.dim() == 3
        assert not touched or not torch.allclose(ours, before, atol=1e-2)


@pytest.mark.parametrize("name", [name for name in CASES if "all biases" not in name])
def test_what_peft_trained_goes_back_to_peft(name: str, tmp_path: Path) -> None:
    """Also after LyCORIS's suffixes, with A and B cut to each module; PEFT then makes the same forward of it."""
    base, theirs = trained(name, tmp_path / "trained")
    kind = CASES[name][0]
    lyc_fx.convert(lyc_fx.load(tmp_path / "trained"), "lycoris", like=base).save(tmp_path / "own.safetensors")
    for source in ("trained", "own.safetensors"):
        folder = tmp_path / f"from {source}"
        lyc_fx.convert(tmp_path / source, "peft", like=base).save(folder)
        again = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).double().eval()
        for ours, wanted in zip(outputs(again, kind), outputs(theirs, kind), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-11)
        written = json.loads((folder / "adapter_config.json").read_text())
        assert written["peft_type"] == CASES[name][1].removesuffix("Config").upper()


@pytest.mark.parametrize("name", ["vera", "vera of Conv1D"])
def test_vera_as_lora(name: str, tmp_path: Path) -> None:
    base, theirs = trained(name, tmp_path / "trained")
    kind = CASES[name][0]
    conversion = lyc_fx.convert(tmp_path / "trained", "diffusers", like=base)
    assert {each.how for each in conversion.modules} == {("low rank",)}
    assert all(isinstance(each.adapter, LoCon) for each in conversion.modules)
    conversion.save(tmp_path / "lora.safetensors")
    live = copy.deepcopy(base)
    lyc_fx.merge(live, lyc_fx.load(tmp_path / "lora.safetensors"))
    for ours, wanted in zip(outputs(live, kind), outputs(theirs, kind), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-5)  # its products are stored in float32


@pytest.mark.parametrize("name", ["vera of Conv1D", "hra", "hra, Gram-Schmidt"])
def test_three_roads_and_lower(name: str, tmp_path: Path) -> None:
    base, _ = trained(name, tmp_path)
    inputs = tuple(each.double() for each in INPUTS[CASES[name][0]]())
    adapters = lyc_fx.load(tmp_path)
    live = copy.deepcopy(base)
    lyc_fx.merge(live, adapters, 0.7)
    adapted = lyc_fx.splice(lyc_fx.capture(base, inputs), adapters, 0.7)
    folded, lowered = lyc_fx.fold(adapted, check=True), lyc_fx.lower(adapted, check=True)
    save_file(base.state_dict(), tmp_path / "base.safetensors")
    turned = ("c_proj.weight",) if "Conv1D" in name else ()
    lyc_fx.fold_checkpoint(
        tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors", 0.7, transposed=turned
    )
    stored = load_file(tmp_path / "out.safetensors")
    for key, tensor in live.state_dict().items():
        assert torch.equal(folded.state_dict()[key], tensor) and torch.equal(stored[key], tensor), key
    both = lowered(*inputs), live(*inputs)
    for ours, wanted in zip(*(out if isinstance(out, tuple) else (out,) for out in both), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-9)


def test_vera_by_hand(tmp_path: Path) -> None:
    """Every module reads the same A and B, which are in memory once; strength 0.7."""
    base, _ = trained("vera", tmp_path)
    stored = {key: tensor.double() for key, tensor in load_file(tmp_path / "adapter_model.safetensors").items()}
    a, b = stored["base_model.vera_A"], stored["base_model.vera_B"]
    assert (a.shape, b.shape) == ((3, 11), (13, 3))
    adapters = lyc_fx.load(tmp_path)
    live = copy.deepcopy(base)
    lyc_fx.merge(live, adapters, 0.7)
    for name in LINEAR:
        before = base.get_parameter(f"{name}.weight")
        out, inner = before.shape
        lambda_b, lambda_d = (stored[f"base_model.model.{name}.vera_lambda_{side}"] for side in "bd")
        change = torch.diag(lambda_b) @ b[:out] @ torch.diag(lambda_d) @ a[:, :inner]
        torch.testing.assert_close(live.get_parameter(f"{name}.weight"), before + 0.7 * change, rtol=1e-13, atol=1e-13)
    for factor in ("a", "b"):
        assert len({entry.adapter.factors()[factor].data_ptr() for entry in adapters.entries}) == 1


def test_hra_by_hand() -> None:
    """With a kernel that is not square, which PEFT does not have: one reflection after another."""
    torch.manual_seed(0)
    weight, u = torch.randn(5, 3, 2, 3, dtype=torch.float64), torch.randn(18, 4, dtype=torch.float64)
    for orthonormal in (0, 1):
        columns = torch.linalg.qr(u)[0] if orthonormal else u / u.norm(dim=0)
        identity = product = torch.eye(18, dtype=torch.float64)
        for column in columns.t():
            product = product @ (identity - 2 * torch.outer(column, column))
        for strength in (0.7, 1.0):
            wanted = weight.flatten(1) @ (identity + strength * (product - identity))
            ours = HRA(u=u, orthonormal=orthonormal).apply(weight, strength).flatten(1)
            torch.testing.assert_close(ours, wanted, rtol=1e-13, atol=1e-13)
        norms = ours.norm(dim=1)
        torch.testing.assert_close(norms, weight.flatten(1).norm(dim=1), rtol=1e-13, atol=1e-13)


def test_keys_of_a_state_dict_and_without_a_configuration(tmp_path: Path) -> None:
    kind, config, settings = CASES["vera"]
    base = made(kind)
    adapted = train(base, config, tmp_path, **settings)
    wanted = copy.deepcopy(base)
    lyc_fx.merge(wanted, lyc_fx.load(tmp_path))
    named = {key: tensor for key, tensor in adapted.state_dict().items() if "vera_" in key}
    assert "base_model.vera_A.default" in named and "base_model.model.fc.vera_A.default" in named
    own = {key: tensor for key, tensor in named.items() if not key.startswith("base_model.vera_")}
    other = {key.replace(".default", ".mine"): tensor for key, tensor in named.items()}
    for tensors in (load_file(tmp_path / "adapter_model.safetensors"), named, own, other):
        live = copy.deepcopy(base)
        assert lyc_fx.merge(live, adapters := lyc_fx.load(tensors)).unused == () and adapters.unread == ()
        assert all(torch.equal(p, wanted.get_parameter(n)) for n, p in live.named_parameters())
    with pytest.raises(BadAdapter, match=r"base_model.vera_A.default and base_model.vera_A.mine are the same factor"):
        lyc_fx.load(named | other)


def test_every_key_is_accounted_for(tmp_path: Path) -> None:
    base, _ = trained("vera", tmp_path)
    found = lyc_fx.coverage(lyc_fx.load(tmp_path), base)
    assert found.complete
    keys = {key.key: sorted(key.targets) for key in found.keys}
    assert len(keys) == 8
    for name in "AB":
        assert keys[f"base_model.vera_{name}"] == sorted(f"{module}.weight" for module in LINEAR)
    shapes = {"A": (2, 7), "B": (11, 2)}
    lora = {f"base_model.model.fc.lora_{side}.weight": torch.ones(shape) for side, shape in shapes.items()}
    stray = lyc_fx.load(lora | {"base_model.vera_A": torch.ones(2, 7)}, alpha=2.0)
    assert stray.unread == ("base_model.vera_A",)
