"""Graph road, checkpoint road and live road against the closed formula: family × variant × layer kind × dtype."""

import copy
from pathlib import Path

import pytest
import torch
from lowering import captured
from nets import CASES, VARIANTS, Case, Variant, certain, one, pairs, random_for, variant_id
from oracle import ADDITIVE, BASED, adapted
from safetensors.torch import load_file, save_file
from torch import Tensor

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.merging.merged import Change, merged
from lyc_fx.numerics.rounding import cast

STRENGTH = 0.7
LOW = (torch.float32, torch.bfloat16, torch.float16)
LAYERS = {variant_id(variant): [case.name for _, case in pairs(CASES, [variant])] for variant in VARIANTS}
"""Of each variant, those for which it exists"""
BOUND = {torch.float64: 1e-12, torch.float32: 1e-6}


def test_every_family_has_an_oracle() -> None:
    assert {family.name for family in FAMILIES} == {*ADDITIVE, *BASED}


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_every_variant_has_layers_to_be_tested_on(variant: Variant) -> None:
    assert LAYERS[variant_id(variant)]


def test_every_variant_is_tried_in_every_dtype() -> None:
    """Where enough layers have it."""
    tried = [(variant, low_dtype(variant, case)) for variant, case in pairs(CASES)]
    for variant in VARIANTS:
        cases = sum(each is variant for each, _ in tried)
        assert len({dtype for each, dtype in tried if each is variant}) == min(cases, len(LOW))


def low_dtype(variant: Variant, case: Case) -> torch.dtype:
    """Each layer has a third of the variants in each dtype, and each next layer another third."""
    return LOW[(VARIANTS.index(variant) + LAYERS[variant_id(variant)].index(case.name)) % len(LOW)]


@pytest.mark.parametrize("wide", [True, False], ids=["float64", "lower"])
@pytest.mark.parametrize("case", CASES, ids=variant_id)
def test_roads_agree_with_the_closed_formula(case: Case, wide: bool, tmp_path: Path) -> None:
    for seed, (variant, _) in enumerate(pairs([case])):
        dtype = torch.float64 if wide else low_dtype(variant, case)
        adapter = certain(variant, case.logical, dtype=torch.float32 if seed % 2 else torch.bfloat16, seed=seed)
        model, x, program = case.net(dtype), case.x(dtype), captured(case, dtype)
        save_file(model.state_dict(), tmp_path / "base.safetensors")
        adapters = one(adapter)
        base = model.layer.weight.detach()
        wanted = adapted(adapter, base.t() if case.transposed else base, STRENGTH)
        wanted = wanted.t() if case.transposed else wanted

        live = copy.deepcopy(model)
        lyc_fx.merge(live, adapters, STRENGTH)
        spliced = lyc_fx.splice(program, adapters, STRENGTH)
        folded = lyc_fx.fold(spliced, check=True)
        assert [step.fired for step in lyc_fx.history(folded)] == [1, 1]
        out = tmp_path / f"{seed}.safetensors"
        transposed = ("layer.weight",) if case.transposed else ()
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters, out, STRENGTH, transposed=transposed)

        weights = {
            "live": live.state_dict(),
            "graph": folded.state_dict(),
            "checkpoint": load_file(out),
        }
        for road, state in weights.items():
            assert sorted(state) == sorted(model.state_dict()), road
            assert state["layer.weight"].dtype == dtype
            check_rounding(state["layer.weight"], wanted)
            if "layer.bias" in state:
                assert torch.equal(state["layer.bias"], model.state_dict()["layer.bias"])
        assert torch.equal(live.layer.weight, folded.get_parameter("layer.weight"))
        assert torch.equal(live.layer.weight, weights["checkpoint"]["layer.weight"])
        with torch.no_grad():  # an unfolded program rounds by torch's own cast
            changes = [Change(adapter, STRENGTH)]
            cast_once = copy.deepcopy(model)
            cast_once.layer.weight.copy_(merged(base, changes, transposed=case.transposed, rounding=cast))
        for inputs in (x, case.x(dtype, extra=2)):
            assert torch.equal(folded(inputs), live(inputs))
            # With factors that require grad, matmul may sum in another order: seen only where nothing is rounded.
            tolerance = 1e-12 if dtype == torch.float64 else 0
            torch.testing.assert_close(spliced(inputs), cast_once(inputs), rtol=tolerance, atol=tolerance)
            assert not torch.equal(folded(inputs), model(inputs))


def check_rounding(weight: Tensor, wanted: Tensor) -> None:
    """fp64 ≤ 1e-12, fp32 ≤ 1e-6; below, 99.9 % correctly rounded and none off by more than one unit."""
    if weight.dtype in BOUND:
        error = (weight.double() - wanted).norm() / wanted.norm()
        assert error <= BOUND[weight.dtype], error
        return
    rounded = wanted.to(weight.dtype)
    assert units_apart(weight, rounded).max() <= 1
    wrong = int((weight != rounded).sum())
    assert wrong <= max(1, 0.001 * weight.numel()), f"{wrong} of {weight.numel()} elements are not correctly rounded"


def units_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many values of their 16-bit type lie between two tensors' elements."""

    def ordered(t: Tensor) -> Tensor:
        bits = t.contiguous().view(torch.int16).int()
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(a) - ordered(b)).abs()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_low_precision_is_correctly_rounded_on_many_elements(variant, dtype: torch.dtype) -> None:  # type: ignore[no-untyped-def]
    shapes = ((96, 60, 3, 3), (96, 60), (5000,), (8, 60, 90))
    adapter, shape = next((a, s) for s in shapes if (a := random_for(variant, s, rank=8, alpha=3.0)) is not None)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.randn(shape).to(dtype) / 8)
    wanted = adapted(adapter, model.weight, STRENGTH)
    lyc_fx.merge(model, one(adapter, "lycoris_"), STRENGTH)
    rounded = wanted.to(dtype)
    assert units_apart(model.weight.detach(), rounded).max() <= 1
    assert (model.weight == rounded).double().mean() >= 0.999
