"""Served adapters in real classes, generating and under guidance, and what happens to the model."""

import copy

import pytest
import torch
from living import X, adapters, merged, net, same
from tiny_pipelines import sdxl
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import lyc_fx


def test_generate_with_a_cache() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, vocab_size=31
    )
    model = LlamaForCausalLM(config).eval()
    linear = [n for n, each in model.named_modules() if isinstance(each, nn.Linear)]
    table = [("model.embed_tokens", "loha"), *((n, "lokr") for n in linear[:3])]
    sets = {
        "a": [(adapters(model, *linear, dtype=torch.float32), 0.9)],
        "b": [(adapters(model, n, family=f, seed=2, dtype=torch.float32), -1.4) for n, f in table],
    }
    ids = torch.tensor([[3, 5, 7], [3, 5, 7], [3, 5, 7], [11, 2, 4]])
    wanted = {None: copy.deepcopy(model), **{n: merged(copy.deepcopy(model), s) for n, s in sets.items()}}
    served, picks = lyc_fx.serve(model, sets), ("a", None, "b", "b")
    served.choose(picks)
    found = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    for name, prompt, tokens in zip(picks, ids, found, strict=True):
        alone = wanted[name].generate(prompt[None], max_new_tokens=6, do_sample=False, pad_token_id=0)
        assert torch.equal(tokens, alone[0])
    assert not torch.equal(found[0], found[1]) or not torch.equal(found[1], found[2])


def test_a_pipeline_under_guidance() -> None:
    pipe, rng = sdxl(), torch.Generator().manual_seed(0)
    embeds = [torch.randn(2, *shape, generator=rng) for shape in ((5, 24), (16,), (5, 24), (16,))]
    noise = torch.randn(2, 4, 8, 8, generator=rng)

    def images(of: object, *samples: int) -> Tensor:
        prompt, pooled, negative, negative_pooled = (each[list(samples)] for each in embeds)
        return of(  # type: ignore[operator, no-any-return]
            prompt_embeds=prompt, pooled_prompt_embeds=pooled, negative_prompt_embeds=negative,
            negative_pooled_prompt_embeds=negative_pooled, num_inference_steps=2, height=16, width=16,
            output_type="pt", guidance_scale=3.0, latents=noise[list(samples)].clone(),
        ).images  # fmt: skip

    names = [n for n, each in pipe.unet.named_modules() if n.endswith(("to_q", "to_k", "to_out.0"))]
    choice = adapters(pipe.unet, *names, dtype=torch.float32)
    plain = images(pipe, 1)
    with lyc_fx.live(pipe.unet) as live:
        live.set(choice, 1.5)
        alone = images(pipe, 0)
    with lyc_fx.serve(pipe.unet, {"a": [(choice, 1.5)]}) as served:
        served.choose(["a", None], copies=2)
        found = images(pipe, 0, 1)
    torch.testing.assert_close(found, torch.cat([alone, plain]), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[:1], images(pipe, 0), atol=1e-3)


def test_a_copy_serves_and_the_state_dict_is_the_models_own() -> None:
    model, choice = net(), None
    keys, choice = list(model.state_dict()), adapters(model, "0", "2")
    served = lyc_fx.serve(model, {"a": [(choice, 0.7)]})
    served.choose(["a", None, "a", None])
    assert list(model.state_dict()) == keys
    other = copy.deepcopy(model)
    served.choose([None] * 4)
    same(other(X)[::2], merged(net(), choice, 0.7)(X)[::2])
    same(model(X), net()(X))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_dtypes_and_autocast(dtype: torch.dtype) -> None:
    model, x = net().to(dtype), X.to(dtype)
    choice = adapters(model, "0", "2", family="diag-oft", rank=3, dtype=torch.float32)
    wanted = merged(copy.deepcopy(model), choice, 0.7)(x)
    served = lyc_fx.serve(model, {"a": [(choice, 0.7)]})
    served.choose(["a"] * 4)
    assert model(x).dtype == dtype
    torch.testing.assert_close(model(x), wanted, rtol=5e-2, atol=5e-2)
    wide = net().float()
    lyc_fx.serve(wide, {"a": [(choice, 0.7)]}).choose(["a", None, "a", None])
    with torch.autocast("cpu", torch.bfloat16):
        found = wide(X.float())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found[::2], wanted.bfloat16()[::2], rtol=1e-1, atol=1e-1)


def test_a_set_that_fails_leaves_the_row_that_it_would_have_overwritten() -> None:
    """The second layer's merged weight overflows after the first layer's row has been written."""
    model = nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 6)).to(torch.float16)
    first = adapters(model, "0", "1", family="full", dtype=torch.float32)
    served = lyc_fx.serve(model, {"a": [(first, 0.7)]})
    served.choose(["a"] * 4)
    before = model(X.half())
    second = adapters(model, "0", "1", family="full", seed=3, dtype=torch.float32)
    with pytest.raises(lyc_fx.BadAdapter, match=r"^1\.weight: the merged weight is not finite"):
        served.put("a", [(second, {"0.*": 0.1, "1.*": 1e7})])
    assert torch.equal(model(X.half()), before)
    served.put("a", [(second, 0.1)])
    found = model(X.half())
    served.detach()
    torch.testing.assert_close(found, merged(model, second, 0.1)(X.half()), rtol=1e-2, atol=1e-2)


def test_parts_of_a_fused_weight_and_tied_weights() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"qkv_proj": nn.Linear(6, 18), "head": nn.Linear(6, 11), "table": nn.Embedding(11, 6)})
    model["head"].weight = model["table"].weight  # type: ignore[union-attr, index]
    model.double()
    plain, sets = copy.deepcopy(model), {}
    for name, family in (("a", "locon"), ("b", "diag-oft")):
        parts = nn.ModuleDict({part: nn.Linear(6, 6) for part in ("q_proj", "k_proj", "v_proj")})
        sets[name] = [(adapters(parts, *parts, family=family, rank=3), 0.8)]
    sets["c"] = [(adapters(model, "table", rank=2), -0.6)]
    served = lyc_fx.serve(model, sets)  # type: ignore[arg-type]
    assert "is tied to head.weight" in " ".join(served.reports["c"].notes)
    served.choose(["b", "a", None, "c"])
    found = model["qkv_proj"](X)  # type: ignore[index, operator]
    for sample, name in ((0, "b"), (1, "a")):
        other = copy.deepcopy(plain)
        report = lyc_fx.merge(other, sets[name])  # type: ignore[arg-type]
        assert len(report.applied) == 3
        same(found[sample], other["qkv_proj"](X[sample]))  # type: ignore[index, operator]
    same(found[2:], plain["qkv_proj"](X)[2:])  # type: ignore[index, operator]
    ids = torch.tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    assert torch.equal(model["table"](ids)[:3], plain["table"](ids)[:3])  # type: ignore[index, operator]
    assert torch.equal(model["head"](X), plain["head"](X))  # type: ignore[index, operator]
    assert not torch.allclose(model["table"](ids)[3], plain["table"](ids)[3])  # type: ignore[index, operator]


def test_a_model_that_moved_to_another_dtype_is_served_anew() -> None:
    model = net()
    choice = adapters(model, "0", "2")
    served = lyc_fx.serve(model, {"a": [(choice, 0.7)]}, most=2)
    model.float()
    with pytest.raises(lyc_fx.Unsupported, match="0 has another dtype or device"):
        served.choose(["a", None, "a", None])
    served.put("b", [(adapters(model, "0", seed=4), 0.3)])
    served.choose(["a", "b", "a", None])
    wanted = merged(net().float(), choice, 0.7)(X.float())
    torch.testing.assert_close(model(X.float())[::2][:1], wanted[:1], rtol=1e-4, atol=1e-4)
