"""Strengths, stacks and conventions, on the graph road and the live road."""

import copy
import re

import pytest
import torch
from lowering import captured
from nets import CASES, VARIANTS, Case, Variant, many, one, random_for, variant_id
from oracle import adapted as closed_form
from oracle import factors_of
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.adapters.orthogonal import Orthogonal
from lyc_fx.algorithms import FAMILIES, random_adapter
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.tlora import TLoRA
from lyc_fx.binding.stack import Adapters, Blocks
from lyc_fx.errors import BadAdapter

pytestmark = pytest.mark.filterwarnings(
    "ignore::lyc_fx.binding.report.NothingChanged"
)  # strength 0 is among what is tried

CONV: Case = next(case for case in CASES if case.name == "conv2d-even")
LINE: Case = next(case for case in CASES if case.name == "conv1d")
LAST: Case = next(case for case in CASES if case.name == "layer-norm")


def on_both_roads(case: Case, adapters: Adapters, strength: float | Blocks = 1.0, **options: object) -> Tensor:
    """The merged weight, the same from the graph and from the live road."""
    live = copy.deepcopy(case.net())
    lyc_fx.merge(live, adapters, strength, **options)  # type: ignore[arg-type]  # keywords of merge
    program = captured(case, torch.float64)
    folded = lyc_fx.fold(lyc_fx.splice(program, adapters, strength, **options), check=True)  # type: ignore[arg-type]
    assert torch.equal(folded.get_parameter("layer.weight"), live.get_parameter("layer.weight"))
    return live.get_parameter("layer.weight").detach()


def made(variant: Variant, case: Case = CONV, seed: int = 0, alpha: float = 2.0) -> tuple[Adapter, Case]:
    """An adapter of the variant for the case, or for another layer if it exists only there."""
    for each in (case, next(c for c in CASES if c.name == "linear"), LINE, LAST):
        if (adapter := random_for(variant, each.logical, alpha=alpha, seed=seed, dtype=torch.float64)) is not None:
            return adapter, each
    raise AssertionError(variant)


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_conventions_agree_at_one_and_ours_is_the_base_at_zero(variant: Variant) -> None:
    adapter, case = made(variant)
    base = case.net().get_parameter("layer.weight").detach()
    whole = on_both_roads(case, one(adapter))
    torch.testing.assert_close(on_both_roads(case, one(adapter), convention="lycoris"), whole, rtol=1e-12, atol=1e-12)
    assert torch.equal(on_both_roads(case, one(adapter), 0.0), base)
    assert not torch.allclose(whole, base)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if {"magnitude", "rescale"} & v[1]], ids=variant_id)
@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_the_reference_convention(variant: Variant, strength: float) -> None:
    """DoRA: V · (1 + s (m/‖V‖ - 1)); rescale at full strength whatever s is. Neither is the base at 0."""
    adapter, case = made(variant)
    base = case.net().get_parameter("layer.weight").detach()
    got = on_both_roads(case, one(adapter), strength, convention="lycoris")
    if isinstance(adapter, Orthogonal):
        rows = factors_of(adapter)["rescale"].reshape(-1, *[1] * (base.dim() - 1))
        plain = type(adapter)(blocks=adapter.blocks, alpha=adapter.alpha)
        wanted = rows * closed_form(plain, base, strength)
    else:
        merged = base + closed_form(adapter.with_factors({"magnitude": None}), base, 1.0) - base  # type: ignore[dict-item]
        wanted = merged + strength * (closed_form(adapter, base, 1.0) - merged)
    torch.testing.assert_close(got, wanted, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(got, on_both_roads(case, one(adapter), strength))


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_a_stack_sums_changes_relative_to_the_base(variant: Variant) -> None:
    adapter, case = made(variant)
    others = [a for v in VARIANTS if (a := random_for(v, case.logical, seed=3, dtype=torch.float64)) is not None][:4]
    base = case.net().get_parameter("layer.weight").detach()
    stack = [(one(adapter), 0.6), *((one(other), 0.3 + i / 10) for i, other in enumerate(others))]
    wanted = base + sum(closed_form(a.entries[0].adapter, base, s) - base for a, s in stack)
    torch.testing.assert_close(on_both_roads(case, stack), wanted, rtol=1e-11, atol=1e-11)
    halved = base + sum(closed_form(a.entries[0].adapter, base, s / 2) - base for a, s in stack)
    torch.testing.assert_close(on_both_roads(case, stack, 0.5), halved, rtol=1e-11, atol=1e-11)


def test_sequential_composes_in_order() -> None:
    oft = next(f for f in FAMILIES if f.name == "diag-oft")
    first, second = (random_adapter(f, CONV.logical, rank=3, dtype=torch.float64) for f in (oft, LoCon))
    base = CONV.net().get_parameter("layer.weight").detach()
    results = []
    for stack in ([(one(first), 0.6), (one(second), 0.8)], [(one(second), 0.8), (one(first), 0.6)]):
        wanted = base
        for adapters, strength in stack:
            wanted = closed_form(adapters.entries[0].adapter, wanted, strength)
        results.append(on_both_roads(CONV, stack, sequential=True))
        torch.testing.assert_close(results[-1], wanted, rtol=1e-11, atol=1e-11)
    assert not torch.allclose(*results)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.ModuleDict({"down": nn.ModuleDict({"0": nn.Linear(3, 5)}), "up": nn.ModuleDict({"0": nn.Linear(3, 5)})})


def plain(seed: int) -> Adapter:
    return random_adapter(LoCon, (5, 3), rank=2, generator=torch.Generator().manual_seed(seed))


def test_block_strengths_are_factors_by_name() -> None:
    adapters = many(lycoris_down_0=plain(0), lycoris_up_0=plain(1))
    blocks = {"down.*": 0.5, "*": 2.0}
    got, wanted = net(), net()
    report = lyc_fx.merge(got, [(adapters, blocks)], 0.8)
    assert [(row.target, row.strength) for row in report.applied] == [("down.0.weight", 0.4), ("up.0.weight", 1.6)]
    lyc_fx.merge(wanted, many(lycoris_down_0=plain(0)), 0.4)
    lyc_fx.merge(wanted, many(lycoris_up_0=plain(1)), 1.6)
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)


def test_block_strengths_in_a_graph_are_factors_of_the_strength_buffer() -> None:
    case = CASES[0]
    adapter, _ = made((LoCon, LoCon.layouts[0]), case)
    program = lyc_fx.capture(case.net(), (case.x(),))
    adapted = lyc_fx.splice(program, [(one(adapter), 0.8)], {"layer.*": 0.5})
    assert adapted.get_buffer("lyc_fx.0.strength") == 0.8
    alone = lyc_fx.splice(program, one(adapter), 0.4)
    torch.testing.assert_close(adapted(case.x()), alone(case.x()), rtol=1e-12, atol=1e-12)
    adapted.get_buffer("lyc_fx.0.strength").fill_(1.6)
    alone.get_buffer("lyc_fx.0.strength").fill_(0.8)
    torch.testing.assert_close(adapted(case.x()), alone(case.x()), rtol=1e-12, atol=1e-12)


def test_a_block_of_factor_zero_is_left_alone_and_a_misspelt_one_is_refused() -> None:
    model, adapters = net(), many(lycoris_down_0=plain(0), lycoris_up_0=plain(1))
    before = copy.deepcopy(model.state_dict())
    lyc_fx.merge(model, adapters, {"up.*": 0})
    assert torch.equal(model.state_dict()["up.0.weight"], before["up.0.weight"])
    assert not torch.equal(model.state_dict()["down.0.weight"], before["down.0.weight"])
    with pytest.raises(BadAdapter, match=r"strength: no adapted weight matches 'middle\.\*'"):
        lyc_fx.merge(model, adapters, {"middle.*": 0.5})
    with pytest.raises(BadAdapter, match="strength inf is not finite"):
        lyc_fx.merge(model, adapters, {"up.*": float("inf")})


def test_names_are_chosen_by_fnmatch_and_by_regular_expression() -> None:
    adapters = many(lycoris_down_0=plain(0), lycoris_up_0=plain(1), lycoris_up_1=plain(2))

    def modules(chosen: AdapterSet) -> list[str]:
        return [entry.module for entry in chosen.entries]

    assert modules(adapters.select("*_up_*")) == ["lycoris_up_0", "lycoris_up_1"]
    assert modules(adapters.select(re.compile(r"lycoris_(up|down)_0"))) == ["lycoris_down_0", "lycoris_up_0"]
    assert modules(adapters.exclude("*_0")) == ["lycoris_up_1"]
    assert modules(adapters.exclude(re.compile("up"))) == modules(adapters)


def test_tlora_says_when_the_base_is_probably_another() -> None:
    torch.manual_seed(0)
    trained_on, other = nn.Linear(40, 30), nn.Linear(40, 30)
    u, s, vh = torch.linalg.svd(trained_on.weight.detach(), full_matrices=False)
    adapter = TLoRA(q=vh[:3] + 0.01 * torch.randn(3, 40), p=u[:, :3].clone(), lam=s[None, :3] * 1.1, alpha=3.0)
    assert lyc_fx.merge(copy.deepcopy(trained_on), one(adapter, "lycoris_")).notes == ()
    [note] = lyc_fx.merge(other, one(adapter, "lycoris_")).notes
    assert note.startswith("weight: only ") and "trained on another base" in note
    program = lyc_fx.capture(nn.Sequential(nn.Linear(40, 30)), (torch.randn(2, 40),))
    [note] = lyc_fx.report(lyc_fx.splice(program, one(adapter, "lycoris_0"))).notes
    assert "trained on another base" in note
