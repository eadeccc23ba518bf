"""Prepared adapters take their turns by copies alone: the same bits as by `set`, or an error."""

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from living import X, adapters, merged, net, same
from nets import CASES, VARIANTS, Case, Variant, certain, pairs, variant_id
from rounded import quantize
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.attaching.bank import Bank

LAYERS = tuple(case for case in CASES if case.name in ("linear", "conv2d-grouped-dilated", "layer-norm"))
EACH = {variant: layer for variant, layer in reversed(pairs(LAYERS, dtype=torch.float64))}
"""Every variant, with the first of these layers for which it exists"""


def two(case: Case) -> nn.Module:
    """Two layers that are alike, called on one input."""
    torch.manual_seed(7)
    return Both(case.build(), case.build()).double().eval().requires_grad_(False)


class Both(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left(x), self.right(x)])


def held(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{path}.{name}": tensor
        for path, bank in model.named_modules()
        if isinstance(bank, Bank)
        for name, tensor in (*bank.named_buffers(), *bank.named_parameters())
    }


def entry(name: str, adapter: Any) -> Entry:
    return Entry(name, "weight", adapter, (name,))


def both(variant: Variant, case: Case, seed: int) -> AdapterSet:
    made = [certain(variant, case.logical, dtype=torch.float64, seed=seed + n) for n in range(2)]
    return AdapterSet((entry("left", made[0]), entry("right", made[1])), "both")


def left(variant: Variant, case: Case, seed: int) -> AdapterSet:
    return AdapterSet((entry("left", certain(variant, case.logical, dtype=torch.float64, seed=seed)),), "left")


def test_every_family_is_among_them() -> None:
    assert {family.name for family, _ in VARIANTS} - {family.name for family, _ in EACH} == {"experts"}  # not layers


@pytest.mark.parametrize("variant", EACH, ids=variant_id)
def test_a_swap_is_a_set_bit_by_bit(variant: Variant) -> None:
    case = EACH[variant]
    agree(case, both(variant, case, 0), both(variant, case, 5), left(variant, case, 9))


def agree(case: Case, first: AdapterSet, second: AdapterSet, few: AdapterSet, **how: bool) -> None:
    """`few`: without an adapter for the second of two layers."""
    model, other, x = two(case), two(case), case.x()
    attached, set_only = (lyc_fx.attach(each, first, 0.7, **how) for each in (model, other))  # type: ignore[arg-type]
    choices = [(second, -1.3), (few, 0.4), (first, 0.7)]
    prepared = [attached.prepare(made, strength) for made, strength in choices]
    tensors = {name: id(tensor) for name, tensor in held(model).items()}
    assert torch.equal(model(x), other(x))
    for (made, strength), each in zip(choices, prepared, strict=True):
        assert attached.swap(each) == set_only.set(made, strength) == attached.report
        assert torch.equal(model(x), other(x))
    attached.swap(prepared[0])
    attached.set_strengths(0.2)
    set_only.set(second, 0.2)
    assert torch.equal(model(x), other(x)) and not torch.equal(model(x), two(case)(x))
    assert {name: id(tensor) for name, tensor in held(model).items()} == tensors


@pytest.mark.parametrize("how", ["resident", "trainable", "saved"])
@pytest.mark.parametrize("family", ["locon", "diag-oft"])
def test_in_every_way_of_attaching(family: str, how: str) -> None:
    variant = next(each for each in VARIANTS if each[0].name == family)
    case = EACH[variant]
    agree(case, both(variant, case, 0), both(variant, case, 5), left(variant, case, 9), **{how: True})


@pytest.mark.parametrize("family", ["locon", "loha", "diag-oft"])
def test_compiled_it_is_not_compiled_again(family: str) -> None:
    torch.compiler.reset()
    model, ranks = net(), (3, 3) if family == "diag-oft" else (2, 4)
    first, second = (adapters(model, "0", "2", family=family, rank=r, seed=r + n) for n, r in enumerate(ranks))
    choices: list[Any] = [[(first, 0.7), (second, -0.2)], [(second, 0.9)], [(first, 0.1)]]
    attached = lyc_fx.attach(model, choices[0], rank=4)
    prepared = [attached.prepare(choice) for choice in choices]
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    compiled(X)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for choice, each in (*zip(choices, prepared, strict=True), (choices[0], prepared[0])):
            attached.swap(each)
            found = compiled(X)
            same(found, merged(net(), choice)(X))
            attached.set(choice)
            assert torch.equal(compiled(X), found)


class Mixed(nn.Module):
    """With a norm and attention, which run with merged weights, and a bias that has an adapter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 12), nn.LayerNorm(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        return self.attention(y, y, y, need_weights=False)[0]


def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().double().eval().requires_grad_(False)


def of(model: nn.Module, *parts: tuple[str, str, str], seed: int = 0) -> AdapterSet:
    """Of names, leaves and families."""
    rng, entries = torch.Generator().manual_seed(seed), []
    for name, leaf, family in parts:
        kind = next(each for each in FAMILIES if each.name == family)
        shape = tuple(model.get_parameter(f"{name}.{leaf}").shape)
        made = random_adapter(kind, shape, rank=2, alpha=3.0, dtype=torch.float64, generator=rng)
        entries.append(Entry(name, leaf, made, (name,)))
    return AdapterSet(tuple(entries), "mixed")


def test_modules_that_run_with_merged_weights() -> None:
    model, other, x = mixed(), mixed(), torch.linspace(-1, 1, 36, dtype=torch.float64).reshape(2, 3, 6)
    parts = [
        ("first", "weight", "locon"),
        ("first", "bias", "full"),
        ("norm", "weight", "norm"),
        ("norm", "bias", "full"),
    ]
    whole = of(model, *parts, ("attention.out_proj", "weight", "loha"))
    few, norm = of(model, parts[0], seed=3), of(model, parts[3], seed=4)
    attached, set_only = lyc_fx.attach(model, whole, 0.7), lyc_fx.attach(other, whole, 0.7)
    choices: list[Any] = [few, norm, [(whole, {"norm.*": -0.5, "*": 1.1})], [(norm, 0.3), (few, 0.9)], []]
    prepared = [attached.prepare(choice, 0.6) for choice in choices]
    for _ in range(2):  # no layer comes or goes
        for choice, each in zip(choices, prepared, strict=True):
            attached.swap(each)
            set_only.set(choice, 0.6)
            assert torch.equal(model(x), other(x))
            if len(choice) == 2 and isinstance(choice, list):
                attached.set_strengths(-0.4, 0.8)
                set_only.set_strengths(-0.4, 0.8)
                assert torch.equal(model(x), other(x))
    assert torch.equal(model(x), mixed()(x))
    with torch.no_grad():
        model.norm.weight.mul_(2)
    refused(attached, prepared[0], r"norm\.weight has other values now")


def refused(attached: lyc_fx.Attached, prepared: lyc_fx.Prepared, message: str) -> None:
    """And nothing has changed."""
    model, report = attached._model, attached.report
    before = {name: (tensor, tensor.clone()) for name, tensor in held(model).items()}
    with pytest.raises(lyc_fx.WrongArgument, match=message + ".*prepare"):
        attached.swap(prepared)
    assert attached.report is report
    for name, tensor in held(model).items():
        assert tensor is before[name][0] and torch.equal(tensor, before[name][1])


def changed(model: Any) -> None:
    with torch.no_grad():
        model[2].weight.mul_(2)


def trained(model: Any) -> None:
    weight = model[2].weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.AdamW([weight]).step()
    weight.requires_grad_(False)


def pointed(model: Any) -> None:
    model[2].weight.data = model[2].weight.data * 2


def loaded(model: Any) -> None:
    model.load_state_dict(net().state_dict())


def assigned(model: Any) -> None:
    model.load_state_dict(net().state_dict(), assign=True)


OF_VALUES: list[tuple[Callable[[Any], None], str]] = [
    (changed, r"2\.weight has other values now"),
    (trained, r"2\.weight has other values now"),
    (pointed, r"2\.weight has other values now"),
    (loaded, r"0\.weight has other values now"),
    (assigned, r"0\.weight is another tensor now"),
]


@pytest.mark.parametrize(("change", "message"), OF_VALUES, ids=lambda each: getattr(each, "__name__", ""))
@pytest.mark.parametrize("kind", ["locon", "resident", "dora"])
def test_base_weights_that_have_changed_since(change: Callable[[Any], None], message: str, kind: str) -> None:
    """They do not matter to a LoRA."""
    model = net().requires_grad_(False)
    choice = dora(model, "0", "2") if kind == "dora" else adapters(model, "0", "2", rank=3)
    attached = lyc_fx.attach(model, choice, 0.7, resident=kind == "resident")
    prepared = attached.prepare(choice, -0.4)
    change(model)
    if kind == "locon":
        attached.swap(prepared)
    else:
        refused(attached, prepared, message)
        attached.swap(attached.prepare(choice, -0.4))
    found = model(X)
    attached.set(choice, -0.4)
    assert torch.equal(model(X), found)


def dora(model: Any, *names: str, seed: int = 0) -> AdapterSet:
    layout = next(layout for family, layout in VARIANTS if family.name == "locon" and "magnitude" in layout)
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in names}
    variant = next(family for family in FAMILIES if family.name == "locon"), layout
    made = {name: certain(variant, shape, dtype=torch.float64, seed=seed) for name, shape in shapes.items()}
    return AdapterSet(tuple(entry(name, each) for name, each in made.items()), "dora")


def replaced(model: Any) -> None:
    model[2] = copy.deepcopy(net()[2])


def rounded(model: Any) -> None:
    model.half().double()


def elsewhere(model: Any) -> None:
    """As hooks that offload layers do."""
    for name, tensor in model[2].lyc_fx._buffers.items():
        model[2].lyc_fx._buffers[name] = tensor.clone()


def cast(model: Any) -> None:
    for parameter in model[2].parameters():
        parameter.data = parameter.data.float()


OF_PLACES: list[tuple[Callable[[Any], None], str]] = [
    (replaced, "2 is another module now"),
    (rounded, "0 has been moved"),
    (elsewhere, "2 has been moved"),
    (cast, "the model has another dtype"),
]


@pytest.mark.parametrize(("change", "message"), OF_PLACES, ids=lambda each: getattr(each, "__name__", ""))
def test_a_model_that_is_another_now(change: Callable[[Any], None], message: str) -> None:
    model = net().requires_grad_(False)
    choice = adapters(model, "0", "2", rank=3)
    attached = lyc_fx.attach(model, choice, 0.7)
    prepared = attached.prepare(choice, -0.4)
    change(model)
    refused(attached, prepared, message)
    attached.set(choice, 0.1)
    attached.swap(attached.prepare(choice, -0.4))
    if change is not cast:
        plain = copy.deepcopy(model)
        for layer in (plain[0], plain[2]):
            del layer.forward, layer.lyc_fx
        same(model(X), merged(plain, choice, -0.4)(X))


def test_other_layers_than_it_was_prepared_for() -> None:
    model = net()
    first, second = adapters(model, "0", "2", rank=3), adapters(model, "0", "2", rank=3, seed=1)
    attached = lyc_fx.attach(model, first, 0.7)
    prepared = attached.prepare(second, 0.4)
    attached.set(first, 0.1)
    attached.swap(prepared)  # the same layers
    same(model(X), merged(net(), second, 0.4)(X))
    refused(lyc_fx.attach(other := net(), first), prepared, "for other layers")
    same(other(X), merged(net(), first)(X))
    attached.set(adapters(model, "2", family="lokr"), 0.3)
    refused(attached, prepared, "for other layers")
    attached.set(first, 0.1)
    refused(attached, prepared, "for other layers")
    prepared = attached.prepare(second, 0.4)
    attached.swap(prepared)
    same(model(X), merged(net(), second, 0.4)(X))
    attached.detach()
    with pytest.raises(lyc_fx.WrongArgument, match="for other layers"):
        attached.swap(prepared)
    same(model(X), net()(X))


def test_mistakes_are_told_and_change_nothing() -> None:
    model = net()
    choice = adapters(model, "0", rank=2)
    attached = lyc_fx.attach(model, choice, 0.7, rank=3)
    before, names = model(X), [name for name, _ in model.named_modules()]
    for other, message in (
        (adapters(model, "2"), r"2\.weight: no adapter is attached there: set\(\) them once .*strength 0"),
        (adapters(model, "0", family="lokr"), r"0\.weight: adapters of another form are attached there: set\(\)"),
        (adapters(model, "0", rank=4), r"0\.weight: the adapter has rank 4, and there is room for 3: .*rank=4"),
        ([(choice, 1.0), (choice, 0.2)], r"0\.weight: adapters of another form are attached there"),
        ({"nothing.lora_down.weight": torch.ones(2, 6)}, "nothing"),
    ):
        with pytest.raises(lyc_fx.BadAdapter, match=message):
            attached.prepare(other)  # type: ignore[arg-type]
    for wrong in (choice, None, "style.safetensors"):
        with pytest.raises(lyc_fx.WrongArgument, match=r"takes what prepare\(\) returned, not .*set\(\)"):
            attached.swap(wrong)  # type: ignore[arg-type]
    assert torch.equal(model(X), before) and [name for name, _ in model.named_modules()] == names
    model[0] = copy.deepcopy(net()[0])
    with pytest.raises(lyc_fx.Unsupported, match="0 has been replaced"):
        attached.prepare(choice)


def test_an_effect_at_strength_0_needs_an_adapter_for_each_layer() -> None:
    model = net()
    choice, few = dora(model, "0", "2"), dora(model, "0")
    attached = lyc_fx.attach(model, choice, 0.7, convention="lycoris")
    attached.swap(attached.prepare(choice, 0.2, convention="lycoris"))
    with pytest.raises(lyc_fx.BadAdapter, match="2: what is attached there has an effect even at strength 0"):
        attached.prepare(few, convention="lycoris")


def test_one_after_another() -> None:
    model = net()
    first, second = adapters(model, "0", family="ia3"), adapters(model, "0", "2")
    attached = lyc_fx.attach(model, [(first, 0.5), (second, 0.9)], sequential=True)
    prepared = attached.prepare([(first, -0.3), (second, 0.2)], sequential=True)
    attached.swap(prepared)
    wanted = net()
    lyc_fx.merge(wanted, [(first, -0.3), (second, 0.2)], sequential=True)
    same(model(X), wanted(X))
    attached.set_strengths(0.4, 0.0)
    lyc_fx.merge(wanted := net(), [(first, 0.4), (second, 0.0)], sequential=True)
    same(model(X), wanted(X))


def test_beside_a_quantized_layer() -> None:
    models: list[Any] = [quantize(net()) for _ in range(2)]
    first, second = dora(net(), "0", "2"), dora(net(), "0", "2", seed=1)
    attached, set_only = (lyc_fx.attach(each, first, 0.7) for each in models)
    prepared = attached.prepare(second, -0.3)
    attached.swap(prepared)
    set_only.set(second, -0.3)
    assert torch.equal(models[0](X), models[1](X))
    models[0][2].weight = quantize(net())[2].weight  # type: ignore[index]
    refused(attached, prepared, r"2\.weight is another tensor now")


def test_failures_halfway() -> None:
    model, x = net().half(), X.half()
    good, bad = (adapters(model, "0", "2", dtype=torch.float16, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        bad.entries[1].adapter.factors()["up"].fill_(6e4)
    attached = lyc_fx.attach(model, good, 0.1, resident=True)
    before = model(x)
    with pytest.raises(lyc_fx.BadAdapter, match=r"2\.weight: the merged weight is not finite"):
        attached.prepare(bad, 100.0)
    assert torch.equal(model(x), before)
    attached.swap(attached.prepare(good, -0.6))
    swapped, report = model(x), attached.report
    assert not torch.equal(swapped, before)
    with pytest.raises(lyc_fx.BadAdapter, match=r"2\.weight: the merged weight is not finite"):
        attached.set(bad, 100.0)
    assert torch.equal(model(x), swapped) and attached.report is report


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = net()
    lora, other = adapters(model, "0"), dora(net(), "0")
    with lyc_fx.attach(model, lora) as attached, torch.inference_mode():
        attached.swap(attached.prepare(lora, 0.3))
        same(model(X), merged(net(), lora, 0.3)(X))
    with lyc_fx.attach(model, other) as attached, pytest.raises(lyc_fx.Unsupported, match="made in inference mode"):
        attached.prepare(other, 0.3)


def test_autograd_notices_a_swap_before_a_backward() -> None:
    model = net().requires_grad_(False)
    choice = adapters(model, "0", "2")
    attached = lyc_fx.attach(model, choice, 0.7)
    prepared = attached.prepare(choice, -0.3)
    y = model(X.clone().requires_grad_()).sum()
    attached.swap(prepared)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_saved_states_and_copies_are_of_their_own_size(tmp_path: Path) -> None:
    model = net()
    choice = adapters(model, "0", "2")
    attached = lyc_fx.attach(model, choice, 0.7, saved=True)
    prepared = attached.prepare(choice, -0.3)
    state = model.state_dict()
    save_file(state, tmp_path / "state.safetensors")
    save_model(model, str(tmp_path / "model.safetensors"))
    for name in ("state", "model"):
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in found)
    model.load_state_dict({name: tensor * 0 for name, tensor in state.items()})
    model.load_state_dict(load_file(tmp_path / "state.safetensors"))
    attached.swap(prepared)
    same(model(X), merged(net(), choice, -0.3)(X))
    twin = copy.deepcopy(model[0])
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in held(twin).values())
    attached.set(choice, 2.0)
    same(twin(X), merged(net(), choice, -0.3)[0](X))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    assert torch.load(io.BytesIO(buffer.getvalue())).keys() == state.keys()


def test_all_layers_lie_in_one_memory() -> None:
    model = net()
    attached = lyc_fx.attach(model, adapters(model, "0", "2"), 0.7)
    assert len({tensor.untyped_storage().data_ptr() for tensor in held(model).values()}) == len(
        {tensor.dtype for tensor in held(model).values()}
    )
    assert all(tensor.data_ptr() % 64 == 0 for tensor in held(model).values())
    assert len(attached.prepare([]).copies) <= 2
