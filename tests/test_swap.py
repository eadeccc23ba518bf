"""Adapters that come and go: bits, failures, compiled models."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets import many
from safetensors.torch import save_file
from swaps import A, B, Chain, adapter, bits, net
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.merging import blocks, blockwise

pytestmark = pytest.mark.filterwarnings(
    "ignore::lyc_fx.binding.report.NothingChanged"
)  # a merge of {} is among the choices


@pytest.fixture(params=["memory", "disk", "folder", "checkpoint"])
def keep(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "checkpoint":
        save_file(net().state_dict(), tmp_path / "base.safetensors")
        return str(tmp_path / "base.safetensors")
    return str(tmp_path) if request.param == "folder" else str(request.param)


def test_every_choice_is_relative_to_the_base(keep: str, tmp_path: Path) -> None:
    model, base = net(), bits(net())
    places = {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()}
    live = lyc_fx.live(model, keep)
    for choice in ({A: 0.8, B: 0.5}, {B: {"c.*": 0.3}}, {A: 1.0}, [(B, -0.4)], A, {}, {B: 1.0}):
        report = live.set(choice)
        fresh = net()
        pairs = list(choice.items()) if isinstance(choice, dict) else choice
        assert lyc_fx.merge(fresh, pairs).applied == report.applied
        assert bits(model) == bits(fresh)
        assert live.report is report
        assert (bits(model) == base) == (not report.applied)
    live.restore()
    assert bits(model) == base
    assert places == {n: (id(p), p.data_ptr(), p.requires_grad) for n, p in model.named_parameters()}
    assert [p.name for p in tmp_path.iterdir()] == (["base.safetensors"] if keep.endswith("tensors") else [])


def test_a_context_restores(keep: str) -> None:
    model, base = net(), bits(net())
    with pytest.raises(ZeroDivisionError), lyc_fx.live(model, keep) as live:
        live.set({A: 0.8})
        assert bits(model) != base
        raise ZeroDivisionError
    assert bits(model) == base


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_a_set_that_fails_leaves_the_model_as_it_was(
    error: BaseException, after: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 16)  # four blocks for each weight
    model, live = net(), None
    live = lyc_fx.live(model, keep)
    every = many(**{name: adapter("locon", seed) for seed, name in enumerate("abc")})
    for start in ({}, {A: 0.8, B: 0.5}):
        live.set(start)
        before, calls, computed = bits(model), [], blockwise.merged_rows

        def failing(*arguments, calls: list[int] = calls, computed=computed, **options) -> Tensor:
            calls.append(0)
            if len(calls) > after:
                raise error
            return computed(*arguments, **options)

        with monkeypatch.context() as patch, pytest.raises(type(error)):
            patch.setattr(blockwise, "merged_rows", failing)
            live.set({every: 1.0})
        assert len(calls) > after
        assert bits(model) == before
        live.set({B: 1.0})
        fresh = net()
        lyc_fx.merge(fresh, B)
        assert bits(model) == bits(fresh)


def test_overflow_and_strangers_change_nothing() -> None:
    model = net(torch.float16)
    live = lyc_fx.live(model)
    live.set({A: 0.5})
    before = bits(model)
    with pytest.raises(BadAdapter, match="beyond the range"):
        live.set({B: 1.0, A: 1e7})
    with pytest.raises(BadAdapter, match="cannot be applied"):
        live.set({many(x=adapter("locon", 0)): 1.0})
    assert bits(model) == before
    assert live.set({many(x=adapter("locon", 0)): 1.0}, strict=False).applied == ()
    assert bits(model) == bits(net(torch.float16))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_model_is_not_compiled_again(backend: str) -> None:
    torch.compiler.reset()
    model, x = Chain(), torch.randn(2, 8).bfloat16()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    with torch.no_grad():
        base = compiled(x)
        live = lyc_fx.live(compiled)
        sets = [AdapterSet(tuple(prefixed(s)), "test.safetensors") for s in (A, B)]
        with torch._dynamo.config.patch(error_on_recompile=True):
            for choice in ({sets[0]: 0.8}, {sets[0]: -0.3}, {sets[1]: 1.0}, dict.fromkeys(sets, 0.5), {}):
                live.set(choice)
                fresh = Chain()
                lyc_fx.merge(fresh, list(choice.items()))
                torch.testing.assert_close(compiled(x), fresh(x))
            assert torch.equal(compiled(x), base)


def prefixed(adapters: AdapterSet) -> list[object]:
    from dataclasses import replace

    return [replace(entry, module=f"layers.{entry.module}") for entry in adapters.entries]


def test_inference_mode() -> None:
    with torch.inference_mode():
        model = net()
        live = lyc_fx.live(model)
        live.set({A: 0.8})
    fresh = net()
    lyc_fx.merge(fresh, A, 0.8)
    assert bits(model) == bits(fresh)
    live.restore()
    assert bits(model) == bits(net())


def tie(model: nn.Module) -> None:
    model.c.weight = model.b.weight


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (tie, r"c\.weight is tied to b\.weight"),
        (lambda m: nn.utils.parametrizations.weight_norm(m.c), r"c\.weight is computed by WeightNorm"),
        (lambda m: setattr(m.c, "weight", nn.Parameter(torch.ones(8).expand(8, 8))), "at the same place in memory"),
    ],
)
def test_a_weight_that_cannot_change_in_place(change: Callable[[nn.Module], object], why: str) -> None:
    model = net(torch.float32)
    change(model)
    before = bits(model)
    live = lyc_fx.live(model)
    with pytest.raises(Unsupported, match=why):
        live.set({many(a=adapter("locon", 0), c=adapter("locon", 1)): 1.0})
    assert bits(model) == before
    live.set({many(a=adapter("locon", 0)): 1.0})
    assert bits(model) != before


def test_a_weight_that_something_else_changed() -> None:
    model = net()
    live = lyc_fx.live(model)
    live.set({A: 1.0})
    with torch.no_grad():
        model.a.weight.add_(1)
    with pytest.raises(Unsupported, match=r"a\.weight was changed by something else"):
        live.set({A: 0.5})
    live.restore()
    assert bits(model) == bits(net())
    live.set({A: 0.5})
    live.restore()
    with torch.no_grad():
        model.a.weight.add_(1)
    with pytest.raises(Unsupported, match=r"a\.weight was changed by something else"):
        live.set({A: 0.5})
