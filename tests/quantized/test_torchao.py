"""Models that torchao has quantized, with adapters beside their layers or merged into them."""

import copy
from typing import Any

import pytest
import torch
from nets import VARIANTS, one, random_for
from oracle import kept
from quantizers import package
from torch import Tensor, nn

import lyc_fx
from lyc_fx.base.quantizers import quantized
from lyc_fx.errors import BadAdapter, Unsupported

torchao = package("torchao")
api = package("torchao.quantization")
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.linspace(-1, 1, 5 * 64).reshape(5, 64)


def symmetric(bits: str) -> Any:
    return api.IntxWeightOnlyConfig(weight_dtype=getattr(torch, bits), granularity=api.PerGroup(32))


def asymmetric() -> Any:
    kind = package("torchao.quantization.quant_primitives").MappingType.ASYMMETRIC
    return api.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=api.PerGroup(32), mapping_type=kind)


CONFIGS = {
    "int8": lambda: api.Int8WeightOnlyConfig(),
    "int8 groups": lambda: api.Int8WeightOnlyConfig(granularity=api.PerGroup(32)),
    "int8 activations": lambda: api.Int8DynamicActivationInt8WeightConfig(),
    "float8": lambda: api.Float8WeightOnlyConfig(),
    "int4": lambda: symmetric("int4"),
    "int4 asymmetric": asymmetric,
}


def net(config: str, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 32)).to(dtype).requires_grad_(False)
    api.quantize_(model[0], CONFIGS[config]())
    return model


def plain(model: nn.Module) -> nn.Module:
    """The same with float32 weights, as the quantized one stands for them."""
    copied = copy.deepcopy(model).float()
    made = nn.Sequential(nn.Linear(64, 96), nn.GELU(), copied[2])
    made[0].weight.data, made[0].bias.data = copied[0].weight.dequantize().float(), copied[0].bias
    return made.requires_grad_(False)


def lora(model: nn.Module, size: float) -> tuple[dict[str, Tensor], Tensor]:
    """Factors whose product is `size` times as long as the first weight, and the product."""
    rng = torch.Generator().manual_seed(1)
    up, down = torch.randn(96, 4, generator=rng), torch.randn(4, 64, generator=rng)
    held = quantized(model[0])
    assert held is not None
    up *= size * held.dequantized(torch.float32).norm() / (up @ down).norm()
    return {"0.lora_up.weight": up, "0.lora_down.weight": down}, up @ down


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("config", CONFIGS)
def test_families_beside_the_layer(config: str) -> None:
    dtypes = ((torch.float32, 1e-6), (torch.bfloat16, 1e-2))
    for dtype, near in dtypes if config in ("int8", "int4") else dtypes[:1]:
        model, fired = net(config, dtype), 0
        base, own, stored = plain(model), model(X.to(dtype)), model[0].weight
        noise = far(own, base(X))  # of quantized activations
        for variant in VARIANTS[::7]:
            adapter = random_for(variant, (96, 64), dtype=torch.float32)
            if adapter is not None:
                fired += 1
                with lyc_fx.attach(model, one(adapter, "0"), 0.7):
                    found = model(X.to(dtype))
                merged = copy.deepcopy(base)
                lyc_fx.merge(merged, one(adapter, "0"), 0.7)
                assert found.dtype == dtype and far(found, merged(X)) < near + 3 * noise
        assert fired >= 3 and model[0].weight is stored and torch.equal(model(X.to(dtype)), own)


@pytest.mark.parametrize("config", CONFIGS)
def test_merged_and_quantized_as_before(config: str) -> None:
    model = net(config)
    before, weight = plain(model)[0].weight, model[0].weight
    factors, change = lora(model, 0.5)
    with pytest.raises(Unsupported, match=r"0\.weight is quantized, a torchao\..*attach.*requantize=True"):
        lyc_fx.merge(model, lyc_fx.load(factors), 0.8)
    assert model[0].weight is weight
    report = lyc_fx.merge(model, lyc_fx.load(factors), 0.8, requantize=True)
    wanted, after = before + 0.8 * change, plain(model)[0].weight
    assert type(model[0].weight) is type(weight) and model[0].weight.dtype == weight.dtype
    assert report.kept == {"0.weight": pytest.approx(kept(before, wanted, after), rel=1e-4)}
    fresh = nn.Sequential(nn.Linear(64, 96)).requires_grad_(False)
    fresh[0].weight.data = wanted
    api.quantize_(fresh, CONFIGS[config]())
    other = (fresh[0].weight.dequantize() - after).abs() > 2e-6
    assert other.float().mean() < 0.01  # the sums differ in their last bit, which a few values turn on
    assert far(model(X), plain(model)(X)) < 2e-2


def test_a_small_change_is_lost_in_four_bits() -> None:
    model = net("int4")
    weight = model[0].weight
    with pytest.raises(BadAdapter, match=r"0\.weight: quantized again as a torchao.* lost: .*lyc_fx\.attach"):
        lyc_fx.merge(model, lyc_fx.load(lora(model, 0.02)[0]), requantize=True)
    assert model[0].weight is weight


def test_compiled_and_copied() -> None:
    model = net("int8")
    adapters = lyc_fx.load(lora(model, 0.3)[0])
    attached = lyc_fx.attach(model, adapters, 0.7, rank=6)
    fast = torch.compile(model, backend="eager", fullgraph=True)
    for strength in (0.7, -0.4):
        attached.set_strengths(strength)
        torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(model)(X), model(X))
