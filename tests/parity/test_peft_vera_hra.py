"""VeRA and HRA against PEFT: on several layers that share A and B, Conv1D, square kernels; and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import many
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.vera import VeRA
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.formats import writer

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft_models import INPUTS, Gpt, made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


class Odd(nn.Module):
    """Sizes that are odd and all different, with and without bias; a convolution of a square kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(7, 11)
        self.bare = nn.Linear(11, 5, bias=False)
        self.wide = nn.Linear(5, 13)
        self.conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)

    def forward(self, x: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.wide(torch.tanh(self.bare(torch.tanh(self.fc(x))))), self.conv(image)


def odd_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 7, generator=generator), torch.randn(2, 3, 7, 6, generator=generator)


INPUTS[Odd] = odd_inputs
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


def test_a_file_without_projections_says_what_to_do(tmp_path: Path) -> None:
    train(made(Odd), "VeraConfig", tmp_path, r=3, target_modules=LINEAR, save_projection=False)
    with pytest.raises(
        BadAdapter, match=r"fc: the file has no vera_A and no vera_B, .* save_projection=False.*merge_and_unload"
    ):
        lyc_fx.load(tmp_path)


def test_hra_needs_the_configuration(tmp_path: Path) -> None:
    train(made(Odd), "HRAConfig", tmp_path, r=4, target_modules=["fc"])
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(BadAdapter, match=r"fc: PEFT keeps what else there is to know in adapter_config\.json"):
        lyc_fx.load(tmp_path)


def test_vera_that_does_not_fit_is_refused() -> None:
    def vera(**other: Tensor) -> VeRA:
        factors = {"a": (2, 9), "b": (12, 2), "lambda_b": (11,), "lambda_d": (2,)}
        return VeRA(**{name: torch.ones(shape) for name, shape in factors.items()} | other)

    assert targets(lyc_fx.merge(made(Odd), many(fc=vera()))) == ["fc.weight"]
    for factor, text in {
        "a": (torch.ones(2, 6), r"vera_A is \(2, 6\), the weight asks for \(2, 7\)"),
        "b": (torch.ones(10, 2), r"vera_B is \(10, 2\), the weight asks for \(11, 2\)"),
        "lambda_b": (torch.ones(10), r"vera_B is \(10, 2\), the weight asks for \(11, 2\)"),
        "lambda_d": (torch.ones(3), r"vera_A is \(2, 7\), the weight asks for \(3, 7\)"),
    }.items():
        with pytest.raises(BadAdapter, match=text[1]):
            lyc_fx.merge(made(Odd), many(fc=vera(**{factor: text[0]})))


def test_hra_that_does_not_fit_is_refused() -> None:
    columns = torch.ones(7, 2)
    for u, orthonormal, text in (
        (torch.ones(6, 2), 0, r"hra_u is \(6, 2\), the weight asks for \(7, 2\)"),
        (columns * torch.tensor([1.0, 0.0]), 0, r"hra_u \(7, 2\) has columns without a direction"),
        (torch.randn(7, 8), 1, r"hra_u \(7, 8\) has columns without a direction"),
    ):
        with pytest.raises(BadAdapter, match=text):
            lyc_fx.merge(made(Odd), many(fc=HRA(u=u, orthonormal=orthonormal)))


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv_proj = nn.Linear(6, 18)
        self.o_proj = nn.Linear(6, 6)


class Apart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for name in "qkvo":
            self.add_module(f"{name}_proj", nn.Linear(6, 6))


def test_fused_projections_and_separate_ones() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 8), torch.randn(20, 3)
    for whole in (
        VeRA(a=a, b=b, lambda_b=torch.randn(18), lambda_d=torch.randn(3)),
        HRA(u=torch.randn(6, 3)),
        HRA(u=torch.randn(6, 3), orthonormal=1),
    ):
        fused, apart = Fused(), Apart()
        rows = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"]).detach()
        fused.qkv_proj.weight.data = rows.clone()
        lyc_fx.merge(fused, many(qkv_proj=whole), 0.7)
        lyc_fx.merge(apart, many(qkv_proj=whole), 0.7)
        together = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"])
        assert torch.equal(together, fused.qkv_proj.weight) and not torch.equal(together, rows)
    parts = {f"{n}_proj": VeRA(a=a, b=b, lambda_b=torch.randn(6), lambda_d=torch.randn(3)) for n in "qkv"}
    fused, apart = Fused(), Apart()
    fused.qkv_proj.weight.data = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"]).detach()
    lyc_fx.merge(fused, many(**parts))
    lyc_fx.merge(apart, many(**parts))
    together = torch.cat([apart.get_parameter(f"{name}_proj.weight") for name in "qkv"])
    assert torch.equal(together, fused.qkv_proj.weight)
    conversion = lyc_fx.convert(many(**parts), "lycoris", like=Fused())
    assert [each.how for each in conversion.modules] == [("fused",)]


def test_what_peft_cannot_hold() -> None:
    def vera(seed: int) -> VeRA:
        made_ = {"a": (2, 11), "b": (13, 2), "lambda_b": (11,), "lambda_d": (2,)}
        torch.manual_seed(seed)
        return VeRA(**{name: torch.randn(shape) for name, shape in made_.items()})

    with pytest.raises(Unsupported, match=r"one vera_A for all modules, here there are several: .* to LoRA"):
        writer("peft").write(many(fc=vera(0), bare=vera(1)))
    with pytest.raises(Unsupported, match=r"one rank for all modules, here there are \[2, 3\]"):
        writer("peft").write(many(fc=HRA(u=torch.ones(7, 2)), bare=HRA(u=torch.ones(11, 3))))
