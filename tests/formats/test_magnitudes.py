"""DoRA's magnitude in every spelling and layout; and modules of which a key is not understood."""

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter

STRENGTH, EPSILON = 0.7, 2.0**-23
MAGNITUDES = ("lora_magnitude_vector", "lora_magnitude_vector.weight", "lora_magnitude_vector.default",
              "lora_magnitude_vector.default.weight", "lora_magnitude_vector.style.weight")  # fmt: skip
PAIRS = (("lora_A.weight", "lora_B.weight"), ("lora_A.style.weight", "lora_B.style.weight"), ("lora_A", "lora_B"),
         ("lora_A.default", "lora_B.default"), ("lora_down.weight", "lora_up.weight"))  # fmt: skip


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def decomposed(weight: Tensor, change: Tensor, magnitude: Tensor, over: tuple[int, ...]) -> Tensor:
    merged = weight + change
    norm = merged.square().sum(over, keepdim=True).sqrt() + EPSILON
    return weight + STRENGTH * (magnitude * merged / norm - weight)


@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize(
    ("pair", "prefix"),
    [(p, f) for p in PAIRS for f in ("unet.", "", "base_model.model.") if "lora_A" in p[0] or "base" not in f],
)
def test_every_spelling_of_a_magnitude(magnitude: str, pair: tuple[str, str], prefix: str) -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"fc": nn.Linear(6, 8, bias=False).double()})
    weight, a, b, m = net.fc.weight.detach().clone(), rand(2, 6), rand(8, 2), rand(8).abs()
    tensors = {f"{prefix}fc.{pair[0]}": a, f"{prefix}fc.{pair[1]}": b, f"{prefix}fc.{magnitude}": m}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3} if prefix.startswith("base") else None
    scale = 1.5 if config else 1.0
    report = lyc_fx.merge(net, lyc_fx.load(tensors, config=config), STRENGTH)
    assert report.applied[0].variant == "dora" and set(report.applied[0].keys) == set(tensors)
    torch.testing.assert_close(net.fc.weight.detach(), decomposed(weight, scale * b @ a, m[:, None], (1,)))


@pytest.mark.parametrize("prefix", ["unet.", "base_model.model.", "transformer.base_model.model."])
@pytest.mark.parametrize("channels", [6, 9])
@pytest.mark.parametrize("spelling", ["lycoris, per input", "lycoris, per output", "peft"])
def test_a_magnitude_of_a_convolution_has_the_layout_of_its_key(spelling: str, channels: int, prefix: str) -> None:
    """In = out too, where the shape does not tell."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"conv": nn.Conv2d(6, channels, 3, bias=False).double()})
    weight, a, b = net.conv.weight.detach().clone(), rand(2, 6, 3, 3), rand(channels, 2, 1, 1)
    change = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
    if spelling == "lycoris, per input":
        key, stored = "dora_scale", rand(1, 6, 1, 1).abs()
        wanted = decomposed(weight, change, stored, (0, 2, 3))
    elif spelling == "lycoris, per output":
        key, stored = "dora_scale", rand(channels, 1, 1, 1).abs()
        wanted = decomposed(weight, change, stored, (1, 2, 3))
    else:
        key, stored = "lora_magnitude_vector", rand(1, channels, 1, 1).abs()
        wanted = decomposed(weight, change, stored.transpose(0, 1), (1, 2, 3))
    tensors = {f"{prefix}conv.lora_A.weight": a, f"{prefix}conv.lora_B.weight": b, f"{prefix}conv.{key}": stored}
    lyc_fx.merge(net, lyc_fx.load(tensors, alpha=2), STRENGTH)
    torch.testing.assert_close(net.conv.weight.detach(), wanted)


def two() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({"fc": nn.Linear(6, 8).double(), "fc2": nn.Linear(6, 8).double()})


def lora(name: str) -> dict[str, Tensor]:
    return {f"unet.{name}.lora_A.weight": rand(2, 6), f"unet.{name}.lora_B.weight": rand(8, 2)}


@pytest.mark.parametrize("key", ["unet.fc.lora_gate", "unet.fc.lora_C.weight", "unet.fc.magnitude.default.weight"])
def test_a_module_that_is_not_wholly_understood_is_left_out(key: str) -> None:
    net = two()
    before = net.fc.weight.detach().clone()
    adapters = lyc_fx.load({**lora("fc"), **lora("fc2"), key: rand(8)})
    with pytest.raises(BadAdapter, match="no format reads this key"):
        lyc_fx.merge(net, adapters, STRENGTH)
    report = lyc_fx.merge(net, adapters, STRENGTH, strict=False)
    assert torch.equal(net.fc.weight, before) and [row.target for row in report.applied] == ["fc2.weight"]
    assert sorted(report.unused) == sorted([*lora("fc"), key])
    assert any("the module is left out" in each.why for each in report.refused)


def test_a_key_that_stands_elsewhere_concerns_no_module() -> None:
    net = two()
    adapters = lyc_fx.load({**lora("fc"), "unet.other.lora_gate": rand(8), "unet.fc3.lora_gate": rand(8)})
    report = lyc_fx.merge(net, adapters, STRENGTH, strict=False)
    assert [row.target for row in report.applied] == ["fc.weight"]


def test_two_adapters_in_one_file_are_told_apart() -> None:
    one, other = ({f"fc.lora_{s}.{n}.weight": rand(*z) for s, z in (("A", (2, 6)), ("B", (8, 2)))} for n in ("a", "b"))
    with pytest.raises(BadAdapter, match="are the same factor"):
        lyc_fx.load(one | other)


@pytest.mark.parametrize("ending", ["", ".default", ".style", ".default_0"])
def test_factors_of_other_methods_with_the_name_of_their_adapter(ending: str) -> None:
    """As in the state dict of a model that PEFT has wrapped."""
    torch.manual_seed(0)
    net = nn.ModuleDict({"fc": nn.Linear(6, 8, bias=False).double()})
    weight, w1, w2 = net.fc.weight.detach().clone(), rand(2, 3), rand(4, 2)
    tensors = {f"base_model.model.fc.lokr_w1{ending}": w1, f"base_model.model.fc.lokr_w2{ending}": w2}
    config = {"peft_type": "LOKR", "r": 4, "alpha": 3}
    lyc_fx.merge(net, lyc_fx.load(tensors, config=config), STRENGTH)
    torch.testing.assert_close(net.fc.weight.detach(), weight + STRENGTH * 0.75 * torch.kron(w1, w2))
