"""Linear layers of bitsandbytes, with adapters beside them or merged into them."""

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

bnb = package("bitsandbytes")
pytestmark = pytest.mark.filterwarnings("ignore")
X = torch.linspace(-1, 1, 5 * 64).reshape(5, 64)


def four_bits(kind: str, *, nested: bool) -> Any:
    layer = bnb.nn.Linear4bit(64, 96, quant_type=kind, compress_statistics=nested)
    options = {"quant_type": kind, "compress_statistics": nested, "module": layer}
    return layer, lambda value: bnb.nn.Params4bit(value, requires_grad=False, **options)


def eight_bits(threshold: float = 0.0) -> Any:
    layer = bnb.nn.Linear8bitLt(64, 96, has_fp16_weights=False, threshold=threshold)
    return layer, lambda value: bnb.nn.Int8Params(value, requires_grad=False, has_fp16_weights=False)


LAYERS = {
    "nf4": lambda: four_bits("nf4", nested=True),
    "fp4": lambda: four_bits("fp4", nested=False),
    "int8": eight_bits,
    "int8 outliers": lambda: eight_bits(6.0),
}


def net(kind: str, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    first, last = nn.Linear(64, 96).to(dtype), nn.Linear(96, 32).to(dtype)
    layer, weight = LAYERS[kind]()
    layer.weight, layer.bias = weight(first.weight.data), nn.Parameter(first.bias.data) if bias else None
    return nn.Sequential(layer.to("cpu"), nn.GELU(), last).requires_grad_(False)


def plain(model: nn.Module) -> nn.Module:
    """The same with float32 weights, as the quantized one stands for them: its product with the identity."""
    layer = model[0]
    bias = layer.bias
    made = nn.Sequential(nn.Linear(64, 96, bias=bias is not None), nn.GELU(), copy.deepcopy(model[2]).float())
    rows = copy.deepcopy(layer)
    rows.bias = None
    made[0].weight.data = rows.train()(torch.eye(64)).t().float().contiguous()
    if bias is not None:
        made[0].bias.data = bias.detach().float()
    return made.requires_grad_(False)


def far(found: Tensor, wanted: Tensor) -> float:
    return float((found.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("kind", LAYERS)
def test_what_the_weight_stands_for(kind: str) -> None:
    """Before the first call, after it, and after one in evaluation mode, which may pack it for the CPU's kernel."""
    model = net(kind)
    wanted, shape = plain(model)[0].weight, model[0].weight.shape
    for call in (lambda: None, lambda: model.train()(X), lambda: model.eval()(X)):
        call()
        held = quantized(model[0])
        assert held is not None and held.shape == (96, 64) and held.dtype == torch.float32
        assert far(held.dequantized(torch.float32), wanted) < 4e-3
    assert shape != (96, 64) or kind.startswith("int8")


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("kind", LAYERS)
def test_families_beside_the_layer(kind: str, training: bool) -> None:
    for dtype, bias in ((torch.float32, True), (torch.bfloat16, False))[training and "outliers" in kind :]:
        model, fired = net(kind, dtype, bias=bias).train(training), 0
        base, own = plain(net(kind, dtype, bias=bias)), model(X.to(dtype))
        noise = far(own, base(X))
        for variant in VARIANTS[:: 7 if training else 9]:
            adapter = random_for(variant, (96, 64), dtype=torch.float32)
            if adapter is not None:
                fired += 1
                with lyc_fx.attach(model, one(adapter, "0"), 0.7) as attached:
                    assert attached.report.applied[0].shape == (96, 64)
                    found = model(X.to(dtype))
                merged = copy.deepcopy(base)
                lyc_fx.merge(merged, one(adapter, "0"), 0.7)
                assert found.dtype == dtype and far(found, merged(X)) < 1e-5 + 4 * noise
        assert fired >= 3 and torch.equal(model(X.to(dtype)), own)


@pytest.mark.parametrize("called", [False, True], ids=["before a call", "after one"])
@pytest.mark.parametrize("kind", LAYERS)
def test_merged_and_quantized_as_before(kind: str, called: bool) -> None:
    model = net(kind).eval()
    if called:
        model(X)
    held, weight = quantized(model[0]), model[0].weight
    assert held is not None
    before = held.dequantized(torch.float32)
    rng = torch.Generator().manual_seed(1)
    up, down = torch.randn(96, 4, generator=rng), torch.randn(4, 64, generator=rng)
    up *= 0.5 * before.norm() / (up @ down).norm()
    adapters = lyc_fx.load({"0.lora_up.weight": up, "0.lora_down.weight": down})
    with pytest.raises(Unsupported, match=r"0\.weight is quantized, a bitsandbytes\..*attach.*requantize=True"):
        lyc_fx.merge(model, adapters, 0.8)
    small = lyc_fx.load({"0.lora_up.weight": up * 1e-4, "0.lora_down.weight": down})
    with pytest.raises(BadAdapter, match=r"0\.weight: quantized again .* lost: .*lyc_fx\.attach"):
        lyc_fx.merge(model, small, requantize=True)
    assert model[0].weight is weight and torch.equal(held.dequantized(torch.float32), before)
    report = lyc_fx.merge(model, adapters, 0.8, requantize=True)
    wanted, after = before + 0.8 * up @ down, held.dequantized(torch.float32)
    lost = float((after - wanted).norm() / (wanted - before).norm())
    assert report.kept == {"0.weight": pytest.approx(kept(before, wanted, after), rel=1e-4)} and lost < (
        0.03 if "int8" in kind else 0.4
    )
    assert far(model(X), plain(model)(X)) < 2e-2
    if "int8" not in kind:
        assert model[0].weight.quant_state is model[0].quant_state
        assert model[0].weight.compress_statistics == weight.compress_statistics
        assert model[0].weight.quant_type == weight.quant_type


def test_compiled_and_copied() -> None:
    model = net("nf4").train()
    factors = {"0.lora_up.weight": torch.randn(96, 4), "0.lora_down.weight": torch.randn(4, 64) / 8}
    attached = lyc_fx.attach(model, lyc_fx.load(factors), 0.7, rank=6)
    fast = torch.compile(model, backend="eager", fullgraph=True)
    for strength in (0.7, -0.4):
        attached.set_strengths(strength)
        torch.testing.assert_close(fast(X), model(X), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(copy.deepcopy(model)(X), model(X))
