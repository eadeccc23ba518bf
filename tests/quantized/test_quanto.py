"""Layers of optimum-quanto, with adapters beside them or merged into them."""

import copy

import pytest
import torch
from nets import VARIANTS, one, random_for
from oracle import kept
from quantizers import package
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter

quanto = package("optimum.quanto")
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.linspace(-1, 1, 5 * 64).reshape(5, 64)
KINDS = ("qint8", "qint4", "qfloat8")


def net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).requires_grad_(False).eval()
    quanto.quantize(model, weights=getattr(quanto, kind), exclude=["2"])
    quanto.freeze(model)
    return model


def plain(model: nn.Module) -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), copy.deepcopy(model[2]))
    made[0].weight.data, made[0].bias.data = model[0].weight.dequantize().clone(), model[0].bias.clone()
    return made.requires_grad_(False)


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", KINDS)
def test_families_beside_the_layer(kind: str) -> None:
    model, fired = net(kind), 0
    own = model(X)
    for variant in VARIANTS[::9]:
        adapter = random_for(variant, (96, 64), dtype=torch.float32)
        if adapter is not None:
            fired += 1
            merged = plain(model)
            lyc_fx.merge(merged, one(adapter, "0"), 0.7)
            with lyc_fx.attach(model, one(adapter, "0"), 0.7):
                assert far(model(X), merged(X)) < 1e-6
    assert fired >= 3 and torch.equal(model(X), own)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_and_quantized_as_before(kind: str) -> None:
    model = net(kind)
    before, weight = plain(model)[0].weight, model[0].weight
    rng = torch.Generator().manual_seed(1)
    up, down = torch.randn(96, 4, generator=rng), torch.randn(4, 64, generator=rng)
    up *= 0.5 * before.norm() / (up @ down).norm()
    small = lyc_fx.load({"0.lora_up.weight": up * 1e-4, "0.lora_down.weight": down})
    with pytest.raises(BadAdapter, match=r"0\.weight: quantized again .* lost: .*lyc_fx\.attach"):
        lyc_fx.merge(model, small, requantize=True)
    assert model[0].weight is weight
    adapters = lyc_fx.load({"0.lora_up.weight": up, "0.lora_down.weight": down})
    report = lyc_fx.merge(model, adapters, 0.8, requantize=True)
    wanted, after = before + 0.8 * up @ down, plain(model)[0].weight
    assert type(model[0].weight) is type(weight) and model[0].weight.qtype == weight.qtype
    lost = float((after - wanted).norm() / (wanted - before).norm())
    assert report.kept == {"0.weight": pytest.approx(kept(before, wanted, after), rel=1e-4)} and lost < 0.4
    assert far(model(X), plain(model)(X)) < 1e-6
