"""A model with attached adapters is the model that it was: compiled, copied, saved, trained, generating."""

import copy
from pathlib import Path
from types import MethodType

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from tiny_pipelines import sdxl
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.GELU(), nn.Linear(15, 6)).double()


def adapters(
    model: nn.Module,
    *names: str,
    family: str = "locon",
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> AdapterSet:
    kind = next(each for each in FAMILIES if each.name == family)
    rng = torch.Generator().manual_seed(seed)

    def adapter(name: str) -> Adapter:
        shape = tuple(model.get_submodule(name).weight.shape)  # type: ignore[union-attr, arg-type]
        found = random_adapter(kind, shape, rank=rank, alpha=3.0, dtype=torch.float64, generator=rng)
        return found.with_factors({field: (factor / 4).to(dtype) for field, factor in found.factors().items()})

    return AdapterSet(tuple(Entry(name, "weight", adapter(name), (name,)) for name in names), "test.safetensors")


def merged(model: nn.Module, choice: object, strength: float = 1.0) -> nn.Module:
    lyc_fx.merge(model, choice, strength)  # type: ignore[arg-type]
    return model


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


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


def test_what_was_compiled_before_is_compiled_anew() -> None:
    model = net()
    compiled = torch.compile(model, fullgraph=True)
    before = compiled(X)
    choice = adapters(model, "0")
    attached = lyc_fx.attach(model, choice, 0.7)
    same(compiled(X), merged(net(), choice, 0.7)(X))
    attached.detach()
    assert torch.equal(compiled(X), before)


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


def test_the_state_dict_is_the_models_own_unless_asked_for() -> None:
    model, plain = net(), net()
    attached = lyc_fx.attach(model, adapters(model, "0"), 0.7)
    assert model.state_dict().keys() == plain.state_dict().keys()
    model.load_state_dict(plain.state_dict(), strict=True)
    attached.detach()
    lyc_fx.attach(model, adapters(model, "0"), 0.7, saved=True)
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert {"0.lyc_fx.0_weight_up", "0.lyc_fx.0_strength"} <= extra
    assert all(name.startswith("0.lyc_fx.") for name in extra)


def test_copies_run_by_themselves() -> None:
    model = net()
    choice = adapters(model, "0", "2")
    attached = lyc_fx.attach(model, choice, 0.7)
    twin = copy.deepcopy(model)
    attached.set(choice, -2.0)
    with torch.no_grad():
        model[0].weight.zero_()
    same(twin(X), merged(net(), choice, 0.7)(X))


def test_twice_is_refused_and_the_end_of_a_block_takes_them_off() -> None:
    model = net()
    before = model(X)
    with lyc_fx.attach(model, adapters(model, "0"), 0.7) as attached:
        assert repr(attached) == "<Attached Sequential: 1 modules>"
        assert not torch.equal(model(X), before)
        with pytest.raises(lyc_fx.Unsupported, match="attached already"):
            lyc_fx.attach(model, adapters(model, "2"))
    assert torch.equal(model(X), before)


@pytest.mark.parametrize("family", ["locon", "lokr", "loha", "diag-oft"])
def test_training(family: str) -> None:
    """Gradients of the factors by the closed formula, through checkpoints and without."""
    model = net().requires_grad_(False)
    choice = adapters(model, "0", family=family)
    lyc_fx.attach(model, choice, 0.7, trainable=True)
    trained = {name.removeprefix("0.lyc_fx.0_weight_"): p for name, p in model.named_parameters() if p.requires_grad}
    adapter = choice.entries[0].adapter
    factors = {name: factor.clone().requires_grad_() for name, factor in adapter.factors().items()}
    weight = adapter.with_factors(factors).apply(model[0].weight, 0.7)
    wanted = torch.autograd.grad(
        model[2](nn.functional.gelu(nn.functional.linear(X, weight, model[0].bias))).square().sum(),
        list(factors.values()),
    )
    for run in (model, lambda x: checkpoint(model, x, use_reentrant=False)):
        found = torch.autograd.grad(run(X).square().sum(), [trained[name] for name in factors])
        for one, other in zip(found, wanted, strict=True):
            same(one, other)


@pytest.mark.parametrize("family", ["locon", "diag-oft", "ia3", "glora"])
def test_under_autocast_outputs_have_its_dtype(family: str) -> None:
    model = net().float()
    choice = adapters(model, "0", "2", family=family, rank=3, dtype=torch.float32)
    wanted = merged(copy.deepcopy(model), choice, 0.7)
    lyc_fx.attach(model, choice, 0.7)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(X.float())
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found, wanted(X.float()), rtol=5e-2, atol=5e-2)


def test_a_merged_weight_that_overflows_is_named() -> None:
    model = net().half()
    choice = adapters(model, "0", dtype=torch.float16)
    attached = lyc_fx.attach(model, choice, 0.1, resident=True)
    with pytest.raises(lyc_fx.BadAdapter, match=r"0\.weight: the merged weight is not finite in torch\.float16"):
        attached.set_strengths(1e6)
    attached.set_strengths(0.1)
    assert torch.equal(model(X.half()), merged(net().half(), choice, 0.1)(X.half()))


def test_generate_with_a_cache() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, vocab_size=31
    )
    model = LlamaForCausalLM(config).eval()
    names = [n for n, each in model.named_modules() if isinstance(each, nn.Linear)]
    choice, ids = adapters(model, *names, dtype=torch.float32), torch.tensor([[3, 5, 7]])
    plain = copy.deepcopy(model)
    lyc_fx.attach(model, choice, 0.9)
    wanted = merged(plain, choice, 0.9).generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert torch.equal(model.generate(ids, max_new_tokens=8, do_sample=False, pad_token_id=0), wanted)


def test_a_pipeline(tmp_path: Path) -> None:
    pipe, other = sdxl(), sdxl()
    unet = [f"unet.{n}" for n, each in pipe.unet.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    text = [f"text_encoder.{n}" for n, each in pipe.text_encoder.named_modules() if isinstance(each, nn.Linear)]
    holder = nn.ModuleDict({"unet": pipe.unet, "text_encoder": pipe.text_encoder})
    choice = adapters(holder, *unet, *text, dtype=torch.float32)
    report = lyc_fx.attach(pipe, choice, 0.3).report
    lyc_fx.merge(other, choice, 0.3)
    assert len({row.target for row in report.applied}) == len(unet) + len(text)
    ids = torch.tensor([[0, 7, 5, 1]])
    with torch.no_grad():
        wanted, found = other.text_encoder(ids).last_hidden_state, pipe.text_encoder(ids).last_hidden_state
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_under_hooks_of_accelerate() -> None:
    class Counts(ModelHook):
        calls = 0

        def pre_forward(self, module: nn.Module, *args: object, **kwargs: object) -> tuple[object, object]:
            type(self).calls += 1
            return args, kwargs

    model = net()
    add_hook_to_module(model[0], Counts())
    choice = adapters(model, "0")
    attached = lyc_fx.attach(model, choice, 0.7)
    same(model(X), merged(net(), choice, 0.7)(X))
    attached.detach()
    same(model(X), net()(X))
    assert Counts.calls == 2


def test_what_is_refused_says_why_and_changes_nothing() -> None:
    normed, patched = nn.Sequential(weight_norm(nn.Linear(6, 15))).double(), net()
    patched[0].forward = MethodType(lambda self, x: x, patched[0])
    lstm = nn.ModuleDict({"0": nn.LSTM(6, 6)}).double()
    factor = next(f for f in FAMILIES if f.name == "full")
    of_lstm = AdapterSet(
        (Entry("0.weight_ih_l0", "weight", random_adapter(factor, (24, 6)), ("0",)),), "test.safetensors"
    )
    for model, choice, message in (
        (normed, adapters(net(), "0"), r"0\.weight is computed by WeightNorm: use lyc_fx\.merge"),
        (patched, adapters(net(), "0"), "something else has replaced the forward of a Linear"),
        (lstm, of_lstm, "a LSTM keeps its weights in a list: use lyc_fx.live"),
        (net().to("meta"), adapters(net(), "0"), "meta device"),
    ):
        before = dict(model.named_modules())
        with pytest.raises(lyc_fx.Unsupported, match=message):
            lyc_fx.attach(model, choice)
        assert dict(model.named_modules()) == before
    offloaded = net()
    cpu_offload(offloaded, execution_device=torch.device("cpu"))
    with pytest.raises(lyc_fx.Unsupported):
        lyc_fx.attach(offloaded, adapters(net(), "0"))


def test_in_another_dtype_it_fails_until_set_again() -> None:
    model = net()
    choice = adapters(model, "0", dtype=torch.float32)
    attached = lyc_fx.attach(model, choice, 0.7)
    model.float()
    with pytest.raises(RuntimeError):
        model(X.float())
    attached.set(choice, 0.7)
    torch.testing.assert_close(model(X.float()), merged(net().float(), choice, 0.7)(X.float()))
