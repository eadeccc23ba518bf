"""A model with attached adapters is the model that it was: compiled, copied, saved, trained, generating."""

import copy
from pathlib import Path
from types import MethodType

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from living import X, adapters, merged, net, same
from tiny_pipelines import sdxl
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter


def test_what_was_compiled_before_is_compiled_anew() -> None:
    model = net()
    compiled = torch.compile(model, fullgraph=True)
    before = compiled(X)
    choice = adapters(model, "0")
    attached = lyc_fx.attach(model, choice, 0.7)
    same(compiled(X), merged(net(), choice, 0.7)(X))
    attached.detach()
    assert torch.equal(compiled(X), before)


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
