"""Adapters beside quantized layers: the layers' own products run, and nothing asks for their weights' values."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from nets import VARIANTS, one, random_for
from rounded import COUNTS, Rounded, dequantize, quantize
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.errors import CaptureError, Unsupported

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)
DENSE = ("full", "replace", "tlora")
"""Families without a chain: a merged weight stands beside the quantized one"""


def net(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15, bias=bias), nn.Tanh(), nn.Linear(15, 7)).double().requires_grad_(False)


def adapters(*names: str, family: str = "locon", rank: int = 2, seed: int = 0) -> AdapterSet:
    kind = next(each for each in FAMILIES if each.name == family)
    rng = torch.Generator().manual_seed(seed)
    shapes = {"0": (15, 6), "2": (7, 15)}
    made = {n: random_adapter(kind, shapes[n], rank=rank, alpha=3.0, dtype=torch.float64, generator=rng) for n in names}
    return AdapterSet(tuple(Entry(n, "weight", adapter, (n,)) for n, adapter in made.items()), "test.safetensors")


def merged(model: nn.Module, choice: object, strength: float = 1.0) -> nn.Module:
    """A model of plain weights with the adapters merged."""
    plain = copy.deepcopy(model)
    for module in plain.modules():
        module.__dict__.pop("forward", None)
        module._modules.pop("lyc_fx", None)
    lyc_fx.merge(dequantize(plain), choice, strength)  # type: ignore[arg-type]
    return plain


@contextmanager
def counted(products: int, dequantized: int = 0) -> Iterator[None]:
    before = dict(COUNTS)
    yield
    assert {name: COUNTS[name] - before[name] for name in COUNTS} == {"products": products, "dequantized": dequantized}


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_every_family_beside_the_layers_own_product(bias: bool) -> None:
    model = quantize(net(bias))
    base, attached, chains = model(X), lyc_fx.attach(model), 0
    for position, variant in enumerate(VARIANTS[not bias :: 2]):
        adapter = random_for(variant, (15, 6), dtype=torch.float64)
        if adapter is None:
            continue
        strength, x = (-1.3, X.reshape(2, 2, 6)) if position % 2 else (0.7, X)
        attached.set(one(adapter, "0"), strength)
        dense = variant[0].name in DENSE
        chains += not dense
        with counted(1 if dense else 2):  # the other layer's product is one
            found = model(x)
        same(found, merged(model, one(adapter, "0"), strength)(x))
    assert chains > 6
    attached.detach()
    assert torch.equal(model(X), base) and isinstance(model[0].weight, Rounded)


def test_what_has_no_adapter_runs_as_before() -> None:
    model = quantize(net())
    with counted(2):
        before = model(X)
    lyc_fx.attach(model, adapters("0"), 0.7)
    assert list(model[2]._modules) == [] and "forward" not in model[2].__dict__
    assert not torch.equal(model(X), before)


def test_several_adapters_of_several_kinds_and_biases() -> None:
    model = quantize(net())
    bias = random_adapter(next(f for f in FAMILIES if f.name == "full"), (15,))
    on_bias = AdapterSet((Entry("0", "bias", bias, ("0",)),), "bias.safetensors")
    choice = [(adapters("0", "2"), 0.4), (adapters("0", family="loha", seed=1), -0.9)]
    turned = (adapters("0", family="diag-oft", rank=3, seed=2), 0.6)
    for each in (choice, [*choice, (on_bias, 1.5)], [*choice, turned], [turned, (on_bias, 0.3)]):
        with lyc_fx.attach(model, each):
            same(model(X), merged(model, each)(X))
    with lyc_fx.attach(model, [turned, *choice], sequential=True):
        plain = dequantize(copy.deepcopy(net()))
        plain = merged(quantize(net()), turned[0], turned[1])
        for part in choice:
            plain = merged(plain, *part)
        same(model(X), plain(X))


def test_strengths_and_other_adapters_without_a_recompile() -> None:
    model = quantize(net())
    first, second = adapters("0", "2", rank=3), adapters("0", family="diag-oft", rank=3, seed=1)
    attached = lyc_fx.attach(model, [(first, 0.7), (second, 0.2)], rank=4)
    frames = []

    def counting(program: torch.fx.GraphModule, inputs: list[Tensor]) -> torch.fx.GraphModule:
        frames.append(program)
        return program

    fast = torch.compile(model, backend=counting, fullgraph=True)
    same(fast(X), model(X))
    attached.set_strengths(-0.4, 0.9)
    same(fast(X), merged(model, [(first, -0.4), (second, 0.9)])(X))
    other = adapters("0", "2", rank=4, seed=5)
    attached.set([(other, 0.8)])
    same(fast(X), merged(model, other, 0.8)(X))
    assert len(frames) == 1


def test_alike_layers_share_a_program_and_others_do_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4))).double().requires_grad_(False)
    for layer in model[:3]:
        quantize(layer)
    kind = next(each for each in FAMILIES if each.name == "locon")
    every = AdapterSet(
        tuple(
            Entry(str(n), "weight", random_adapter(kind, (6, 6), rank=2, dtype=torch.float64), (str(n),))
            for n in range(4)
        ),
        "test.safetensors",
    )
    lyc_fx.attach(model, every, 0.7)
    ran = [module.forward.__func__ for module in model]
    assert ran[0] is ran[1] is ran[2] is not ran[3]
    with counted(3):
        found = model(X)
    same(found, merged(model, every, 0.7)(X))


def test_copies_run_by_themselves() -> None:
    model = quantize(net())
    choice = adapters("0", "2", family="diag-oft", rank=3)
    attached = lyc_fx.attach(model, choice, 0.7)
    twin, wanted = copy.deepcopy(model), model(X)
    attached.set(choice, -0.5)
    model[0].bias.zero_()
    assert torch.equal(twin(X), wanted) and not torch.equal(model(X), wanted)


def test_new_values_are_read_at_the_next_set() -> None:
    model = quantize(net())
    kind = next(v for v in VARIANTS if v[0].name == "locon" and "magnitude" in v[1])
    adapter = random_for(kind, (15, 6), dtype=torch.float64)
    assert adapter is not None
    attached = lyc_fx.attach(model, one(adapter, "0"), 0.7)
    model[0].weight = quantize(net())[0].weight
    model[0].weight.scale.mul_(torch.linspace(0.5, 2, 15).unsqueeze(1))
    model[0].bias = nn.Parameter(torch.ones(15, dtype=torch.float64))
    attached.set(one(adapter, "0"), 0.7)
    same(model(X), merged(model, one(adapter, "0"), 0.7)(X))
    model.eval()
    same(model(X), merged(model, one(adapter, "0"), 0.7)(X))


def test_a_merged_weight_beside_it_on_request() -> None:
    model, choice = quantize(net()), adapters("0", "2", family="lokr")
    attached = lyc_fx.attach(model, choice, 0.7, resident=True)
    with counted(0):
        found = model(X)
    same(found, merged(model, choice, 0.7)(X))
    attached.set(choice, -0.3)
    same(model(X), merged(model, choice, -0.3)(X))


@pytest.mark.parametrize("magnitude", [False, True], ids=["lora", "dora"])
def test_gradients_of_factors(magnitude: bool) -> None:
    """The products of norms need the weight's values; those of plain chains do not."""
    model = quantize(net())
    kind = next(v for v in VARIANTS if v[0].name == "locon" and ("magnitude" in v[1]) == magnitude)
    adapter = random_for(kind, (15, 6), dtype=torch.float64)
    assert adapter is not None
    lyc_fx.attach(model, one(adapter, "0"), 0.7, trainable=True)
    with counted(2, int(magnitude)):
        y = model(X)
    y.square().sum().backward()
    trained = {name: p for name, p in model[0].lyc_fx.named_parameters() if p.requires_grad}
    assert len(trained) == len(adapter.factors())
    for field, factor in adapter.factors().items():
        found = trained[f"0_weight_{field}"].grad
        step = torch.zeros_like(factor)
        step.view(-1)[0] = 1e-6
        moved = [
            merged(model, one(adapter.with_factors({**adapter.factors(), field: factor + s * step}), "0"), 0.7)(X)
            for s in (1, -1)
        ]
        slope = (moved[0].square().sum() - moved[1].square().sum()) / 2e-6
        torch.testing.assert_close(found.view(-1)[0], slope, rtol=1e-4, atol=1e-6)


def test_activations_of_another_dtype_keep_it() -> None:
    model, choice = quantize(net()[:1].float()), adapters("0")
    with torch.no_grad():
        lyc_fx.attach(model, choice, 0.7)
        x = X.bfloat16()
        found = model(x)
    assert found.dtype == torch.bfloat16
    wanted = merged(model, choice, 0.7)(X.float())
    torch.testing.assert_close(found.float(), wanted, rtol=0.05, atol=0.05)


def test_other_roads_say_what_to_do() -> None:
    model, choice = quantize(net()), adapters("2")
    for attempt in (lyc_fx.merge, lyc_fx.live(model).set):
        with pytest.raises(Unsupported, match=r"2\.weight is quantized, a .*rounded\.Rounded.*attach.*requantize=True"):
            attempt(*((model, choice) if attempt is lyc_fx.merge else (choice,)))
    with pytest.raises(CaptureError, match=r"0\.weight is quantized.*lyc_fx\.attach"):
        lyc_fx.capture(model, (X,))
    model[0].weight = net()[0].weight
    assert lyc_fx.merge(model, adapters("0"), 0.7).changes["0.weight"] > 0
