"""What code does to living layers: options, hooks, replacement, failures halfway. None may go wrong in silence."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

X = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(5, 8)
IMAGE = torch.linspace(-1, 1, 2 * 4 * 81, dtype=torch.float64).reshape(2, 4, 9, 9)


def lora(model: nn.Module, *names: str, family: str = "locon", seed: int = 0, leaf: str = "weight") -> AdapterSet:
    kind, rng = next(f for f in FAMILIES if f.name == family), torch.Generator().manual_seed(seed)
    entries = []
    for name in names:
        shape = tuple(getattr(model.get_submodule(name), leaf).shape)
        adapter = random_adapter(kind, shape, rank=2, alpha=3.0, dtype=torch.float64, generator=rng)
        entries.append(Entry(name, leaf, adapter, (name,)))
    return AdapterSet(tuple(entries), "test.safetensors")


def linear(count: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count))).double().requires_grad_(False)


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


class Left(nn.Conv2d):
    """Other code, and a text that does not say it."""

    def __init__(self, stride: int) -> None:
        super().__init__(4, 4, 3, stride=stride)
        self.left = stride

    def extra_repr(self) -> str:
        return ""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(pad(x, (self.left, 0, 0, 0)), weight, bias)


class Quiet(nn.Conv2d):
    def extra_repr(self) -> str:
        return ""


def tiled(mode: str) -> nn.Conv2d:
    conv = nn.Conv2d(4, 4, 3)
    conv._conv_forward = lambda x, w, b: conv2d(pad(x, (1,) * 4, mode=mode), w, b)  # type: ignore[method-assign, assignment]
    return conv


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.ModuleList([tiled("circular"), tiled("reflect")]),
        lambda: nn.ModuleList([Left(1), Left(2)]),
        lambda: nn.ModuleList([Quiet(4, 4, 3), Quiet(4, 4, 3, stride=2)]),
    ],
    ids=["patched", "subclass", "silent text"],
)
def test_convolutions_that_only_look_alike(build: Callable[[], nn.ModuleList]) -> None:
    torch.manual_seed(0)
    layers = build().double().requires_grad_(False)
    choice = lora(layers, "0", "1")
    wanted = copy.deepcopy(layers)
    lyc_fx.merge(wanted, choice, 0.7)
    lyc_fx.attach(layers, choice, 0.7)
    for one, other in zip(layers, wanted, strict=True):
        same(one(IMAGE), other(IMAGE))


def test_an_option_that_changes_is_noticed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)).double().requires_grad_(False)
    choice = lora(model, "0")
    attached = lyc_fx.attach(model, choice, 0.7)
    model[0].padding_mode = "circular"
    model[0]._reversed_padding_repeated_twice = [1, 1, 1, 1]
    with pytest.raises(lyc_fx.Unsupported, match="other options than at the last set"):
        model(IMAGE)
    attached.set(choice, 0.7)
    found = model(IMAGE)
    attached.detach()
    lyc_fx.merge(model, choice, 0.7)
    same(found, model(IMAGE))


def test_a_pickle_would_lose_the_adapters_and_is_refused() -> None:
    model = linear()
    attached = lyc_fx.attach(model, lora(model, "0"))
    with pytest.raises(lyc_fx.Unsupported, match="cannot be pickled: detach"):
        pickle.dumps(model)
    attached.detach()
    pickle.dumps(model)


def test_merging_into_a_model_with_attached_adapters_is_refused() -> None:
    model = linear()
    live = lyc_fx.live(model)
    attached = lyc_fx.attach(model, lora(model, "0"))
    for change in (lambda: lyc_fx.merge(model, lora(model, "1")), lambda: live.set(lora(model, "1"))):
        with pytest.raises(lyc_fx.Unsupported, match=r"adapters attached .* detach"):
            change()
    attached.detach()
    live.set(lora(model, "1"))


def test_a_layer_that_was_replaced_is_adapted_anew() -> None:
    model = linear()
    choice = lora(model, "0", "1")
    attached = lyc_fx.attach(model, choice, 0.7)
    old, model[0] = model[0], nn.Linear(8, 8).double().requires_grad_(False)
    attached.set(choice, 0.7)
    assert not hasattr(old, "lyc_fx")
    found = model(X)
    attached.detach()
    lyc_fx.merge(model, choice, 0.7)
    same(found, model(X))


@pytest.mark.parametrize("resident", [False, True])
def test_a_failure_halfway_leaves_all_as_it_was(resident: bool) -> None:
    model = linear(3).half()
    first = lora(model, "0", "1", family="full")
    bad = lora(model, "0", "1", "2", family="full", seed=1)
    with torch.no_grad():
        bad.entries[1].adapter.factors()["diff"].fill_(1e6)
    attached = lyc_fx.attach(model, first, 0.1, resident=resident)
    before, names = model(X.half()), [name for name, _ in model.named_modules()]
    for attempt in (lambda: attached.set(bad, 0.1), lambda: attached.set_strengths(1e6)):
        with pytest.raises(lyc_fx.BadAdapter, match=r"[01]\.weight: the merged weight is not finite"):
            attempt()
        assert torch.equal(model(X.half()), before)
        assert [name for name, _ in model.named_modules()] == names
    assert torch.is_grad_enabled()
    attached.set_strengths(0.2)
    assert not torch.equal(model(X.half()), before)


def test_a_failed_exchange_leaves_all_as_it_was() -> None:
    program = lyc_fx.capture(linear().half(), (X.half(),))
    good, bad = lora(linear(), "0", "1", family="full"), lora(linear(), "0", "1", family="full", seed=1)
    with torch.no_grad():
        bad.entries[1].adapter.factors()["diff"].fill_(1e6)
    staged = lyc_fx.stage(lyc_fx.splice(program, good, 0.1, rank=2))
    before = staged(X.half())
    with pytest.raises(lyc_fx.BadAdapter, match=r"1\.weight: the merged weight is not finite"):
        lyc_fx.exchange(staged, bad, 0.1)
    assert torch.equal(staged(X.half()), before)
    lyc_fx.exchange(torch.compile(staged), good, 0.1)  # type: ignore[arg-type]
    assert torch.equal(staged(X.half()), before)


def test_hooks_that_come_and_go_around_it() -> None:
    model = linear()
    plain = model(X)
    add_hook_to_module(model[0], ModelHook())
    attached = lyc_fx.attach(model, lora(model, "0", "1"))
    remove_hook_from_module(model[0])
    add_hook_to_module(model[1], ModelHook())
    changed = model(X)
    attached.detach()
    assert torch.equal(model(X), plain) and not torch.equal(changed, plain)
    remove_hook_from_module(model[1])
    assert torch.equal(model(X), plain)


def test_a_norm_without_adapters_is_itself_again() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)).double().requires_grad_(False)
    attached = lyc_fx.attach(model, lora(model, "1", family="norm"), 0.5)
    attached.set([])
    with torch.no_grad():
        model[1].weight.mul_(3)
    same(model(X), model[1](model[0](X)))
    assert torch.equal(model[1](X), nn.functional.layer_norm(X, (8,), model[1].weight, model[1].bias))


def test_what_calls_its_children_and_extra_arguments_are_refused() -> None:
    class Owner(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Linear(8, 8))
            self.gain = nn.Parameter(torch.randn(8, 8))

    with pytest.raises(lyc_fx.Unsupported, match="gain: a Owner calls all that it holds"):
        lyc_fx.attach(Owner().double(), {"gain.diff": torch.randn(8, 8)})
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2)).double().requires_grad_(False)
    lyc_fx.attach(model, lora(model, "0"))
    with pytest.raises(lyc_fx.Unsupported, match="takes its input alone"):
        model[0](IMAGE, output_size=(20, 20))


def test_made_in_inference_mode_it_can_be_exchanged() -> None:
    with torch.inference_mode():
        program = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(lyc_fx.capture(linear(), (X,)), lora(linear(), "0"), rank=2)))
    lyc_fx.exchange(program, lora(linear(), "0", seed=1), -0.5)
    wanted = linear()
    lyc_fx.merge(wanted, lora(linear(), "0", seed=1), -0.5)
    same(program(X), wanted(X))


def test_a_tie_is_noted_and_a_rank_is_a_number() -> None:
    model = nn.ModuleDict({"embed": nn.Embedding(8, 8), "head": nn.Linear(8, 8, bias=False)}).double()
    model["head"].weight = model["embed"].weight
    attached = lyc_fx.attach(model, lora(model, "head"))
    assert attached.report.notes == (
        "head.weight is tied to embed.weight: its adapters act where head itself is called",
    )
    attached.detach()
    for rank in ("8", 4.0, True, 0):
        with pytest.raises(lyc_fx.WrongArgument, match="rank="):
            lyc_fx.attach(model, lora(model, "head"), rank=rank)  # type: ignore[arg-type]


def test_a_plan_for_another_program_is_refused() -> None:
    one = lyc_fx.splice(lyc_fx.capture(linear(1), (X,)), lora(linear(), "0"))
    two = lyc_fx.splice(lyc_fx.capture(linear(2), (X,)), lora(linear(), "0", "1"))
    with pytest.raises(lyc_fx.WrongArgument, match="this one has no layer linear_1"):
        lyc_fx.lower(one, lyc_fx.Plan.default(two).with_form("chain", "linear"))
