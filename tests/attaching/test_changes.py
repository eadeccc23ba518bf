"""Attached adapters that change: in place, without a recompile, and to any other."""

import copy

import pytest
import torch
from living import X, adapters, merged, net, same
from torch import nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter


@pytest.mark.parametrize("family", ["locon", "diag-oft", "lokr"])
def test_compiled_it_is_not_compiled_again(family: str) -> None:
    model = net()
    first, second = (
        adapters(model, "0", "2", family=family, rank=r, seed=r) for r in ((2, 4) if family == "locon" else (3, 3))
    )
    attached = lyc_fx.attach(model, [(first, 0.7), (second, 0.0)], rank=4)
    compiled = torch.compile(model, fullgraph=True, dynamic=True)
    same(compiled(X), merged(net(), first, 0.7)(X))
    with torch.compiler.set_stance("fail_on_recompile"):
        for choice in ([(first, 0.1), (second, -0.5)], [(second, 0.9)], [(second, 0.2), (first, 0.3)], []):
            attached.set(choice)
            same(compiled(X), merged(net(), choice)(X) if choice else net()(X))


def test_set_overwrites_tensors_in_place_and_takes_any_other_algorithm() -> None:
    model = net()
    attached = lyc_fx.attach(model, adapters(model, "0", "2", rank=2), 0.7, rank=3)
    places = {name: tensor.data_ptr() for name, tensor in model.named_buffers()}
    attached.set(adapters(model, "2", rank=3, seed=5), -0.2)
    assert {name: tensor.data_ptr() for name, tensor in model.named_buffers()} == places
    same(model(X), merged(net(), adapters(model, "2", rank=3, seed=5), -0.2)(X))
    with pytest.raises(
        lyc_fx.BadAdapter, match=r"0\.weight: the adapter has rank 4, and there is room for 3: .*rank=4"
    ):
        attached.set(adapters(model, "0", rank=4))
    same(model(X), merged(net(), adapters(model, "2", rank=3, seed=5), -0.2)(X))
    for family in ("loha", "ia3", "tlora", "full"):
        choice = adapters(model, "0", family=family)
        attached.set(choice, 0.4)
        same(model(X), merged(net(), choice, 0.4)(X))


def test_strengths_alone() -> None:
    """As in a schedule; also of modules that run with merged weights, and with block weights."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 15), nn.LayerNorm(15), nn.Linear(15, 6)).double()
    first, second = adapters(model, "0", "2"), adapters(model, "2", family="diag-oft", rank=3)
    norm = AdapterSet((Entry("1", "weight", random_adapter(NORM, (15,), dtype=torch.float64), ("1",)),), "norm")
    blocks = {"2.*": -0.5, "*": 1.0}
    plain = copy.deepcopy(model)
    attached = lyc_fx.attach(model, [(first, 0.0), (second, 0.3), (norm, 0.5)], blocks)
    for strengths in ((0.4, 0.0, 0.0), (-1.0, 0.9, 2.0), (0.0, 0.0, 0.0)):
        attached.set_strengths(*strengths)
        choice = list(zip((first, second, norm), strengths, strict=True))
        same(model(X), merged(copy.deepcopy(plain), choice, blocks)(X) if any(strengths) else plain(X))  # type: ignore[arg-type]
    with pytest.raises(lyc_fx.WrongArgument, match="2 strengths for 3 adapter sets"):
        attached.set_strengths(0.1, 0.2)
    with pytest.raises(lyc_fx.WrongArgument, match="'x' are not all numbers"):
        attached.set_strengths(0.1, 0.2, "x")  # type: ignore[arg-type]
    with pytest.raises(lyc_fx.BadAdapter, match=r"nan.* are not all finite"):
        attached.set_strengths(0.1, float("nan"), 0.2)
    attached.detach()
    with pytest.raises(lyc_fx.WrongArgument, match="1 strengths for 0"):
        attached.set_strengths(0.1)


NORM = next(family for family in FAMILIES if family.name == "norm")


@pytest.mark.parametrize("family", ["locon", "diag-oft", "loha"])
def test_resident(family: str) -> None:
    """Merged weights beside the model's own: exchanged in place like factors, and rounded as in a merge."""
    model = net().to(torch.bfloat16)
    ranks = (3, 3) if family == "diag-oft" else (2, 3)
    first, second = (
        adapters(model, "0", "2", family=family, rank=r, seed=n, dtype=torch.bfloat16) for n, r in enumerate(ranks)
    )
    attached, x = lyc_fx.attach(model, first, 0.7, rank=3, resident=True), X.to(torch.bfloat16)
    places = {name: tensor.data_ptr() for name, tensor in model.named_buffers()}
    for choice, strength in ((first, 0.7), (second, -0.4)):
        attached.set(choice, strength)
        assert torch.equal(model(x), merged(net().to(torch.bfloat16), choice, strength)(x))
    assert {name: tensor.data_ptr() for name, tensor in model.named_buffers()} == places
    with pytest.raises(lyc_fx.WrongArgument, match="resident=True"):
        lyc_fx.attach(net(), first, resident=True, trainable=True)


def test_a_merged_weight_that_overflows_is_named() -> None:
    model = net().half()
    choice = adapters(model, "0", dtype=torch.float16)
    attached = lyc_fx.attach(model, choice, 0.1, resident=True)
    with pytest.raises(lyc_fx.BadAdapter, match=r"0\.weight: the merged weight is not finite in torch\.float16"):
        attached.set_strengths(1e6)
    attached.set_strengths(0.1)
    assert torch.equal(model(X.half()), merged(net().half(), choice, 0.1)(X.half()))


def test_in_another_dtype_it_fails_until_set_again() -> None:
    model = net()
    choice = adapters(model, "0", dtype=torch.float32)
    attached = lyc_fx.attach(model, choice, 0.7)
    model.float()
    with pytest.raises(RuntimeError):
        model(X.float())
    attached.set(choice, 0.7)
    torch.testing.assert_close(model(X.float()), merged(net().float(), choice, 0.7)(X.float()))
