"""Adapters that come and go: bits, failures, compiled models, and where the base is kept."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nets import many, random_for
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.algorithms import FAMILIES
from lyc_fx.errors import BadAdapter, BadFile, Unsupported
from lyc_fx.merging import blocks, blockwise

FAMILY = {family.name: family for family in FAMILIES}


pytestmark = pytest.mark.filterwarnings(
    "ignore::lyc_fx.binding.report.NothingChanged"
)  # a merge of {} is among the choices


def net(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Linear(8, 8) for name in "abc"}).to(dtype).eval()


class Chain(nn.Module):
    """Three layers in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = net()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers.values():
            x = layer(x).tanh()
        return x


def adapter(kind: str, seed: int) -> Adapter:
    made = random_for((FAMILY[kind], FAMILY[kind].layouts[0]), (8, 8), rank=2, seed=seed)
    assert made is not None
    return made


A = many(a=adapter("locon", 0), b=adapter("loha", 1))
B = many(b=adapter("lokr", 2), c=adapter("diag-oft", 3))


def bits(model: nn.Module) -> dict[str, bytes]:
    return {n: t.contiguous().view(torch.uint8).numpy().tobytes() for n, t in model.state_dict().items()}


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


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda t: t.pop("a.weight"), r"has no a\.weight"),
        (lambda t: t.update({"a.weight": t["a.weight"].float()}), r"a\.weight is \(8, 8\) torch\.float32"),
        (lambda t: t["a.weight"].add_(1), r"a\.weight has other values"),
    ],
)
def test_a_file_that_is_not_the_base(change: Callable[[dict[str, Tensor]], object], why: str, tmp_path: Path) -> None:
    tensors = copy.deepcopy(dict(net().state_dict()))
    change(tensors)
    save_file(tensors, tmp_path / "base.safetensors")
    model = net()
    with pytest.raises(BadFile, match=why):
        lyc_fx.live(model, tmp_path / "base.safetensors").set({A: 1.0})
    assert bits(model) == bits(net())
    assert set(load_file(tmp_path / "base.safetensors")) == set(tensors)


def test_keeps_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(BadFile, match="a folder or a safetensors file"):
        lyc_fx.live(net(), "memroy")
    if not torch.cuda.is_available():
        with pytest.raises(Unsupported, match="needs a CUDA device"):
            lyc_fx.live(net(), "pinned")
    missing = tmp_path / "gone"
    missing.mkdir()
    live = lyc_fx.live(model := net(), missing)
    os.rmdir(missing)
    with pytest.raises(BadFile, match="gone"):
        live.set({A: 1.0})
    assert bits(model) == bits(net())


def test_the_store_is_closed_even_if_the_base_cannot_be_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError("the device is gone")

    net = nn.Sequential(nn.Linear(6, 15))
    live = lyc_fx.live(net)
    closed: list[bool] = []
    monkeypatch.setattr(live._store, "close", lambda: closed.append(True))
    monkeypatch.setattr(live, "restore", broken)
    with pytest.raises(OSError, match="the device is gone"), live:
        assert not closed
    assert closed == [True]
