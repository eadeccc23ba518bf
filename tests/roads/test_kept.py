"""How much of a change rounding leaves: by hand in float64 on every road, warned of below 0.9, refused below 0.5."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lowering import captured
from nets import CASES, VARIANTS, Variant, certain, many, one, pairs, variant_id
from oracle import BASED, adapted
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.algorithms.full import Full
from lyc_fx.binding.report import NothingChanged, Report, RoundedAway
from lyc_fx.errors import BadAdapter
from lyc_fx.merging import blocks

Run = tuple[Report, dict[str, Tensor]]
Road = Callable[..., Run]
STRENGTH = 0.7


def merging(model: nn.Module, adapters: Any, strength: float, path: Path, **options: Any) -> Run:
    return lyc_fx.merge(model, adapters, strength, **options), model.state_dict()


def swapping(model: nn.Module, adapters: Any, strength: float, path: Path, **options: Any) -> Run:
    live = lyc_fx.live(model)
    return live.set(adapters, strength, **options), model.state_dict()


def on_disk(model: nn.Module, adapters: Any, strength: float, path: Path, **options: Any) -> Run:
    save_file(model.state_dict(), path / "base.safetensors")
    out = path / "out.safetensors"
    report = lyc_fx.fold_checkpoint(path / "base.safetensors", adapters, out, strength, **options)
    return report, load_file(out)


def in_a_graph(model: nn.Module, adapters: Any, strength: float, path: Path, **options: Any) -> Run:
    x = torch.randn(2, model[0].in_features).to(model[0].weight.dtype)  # type: ignore[index]
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, strength), **options)
    return lyc_fx.report(folded), folded.state_dict()


ROADS = (merging, swapping, on_disk, in_a_graph)


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 8)).to(dtype)


def low_rank(size: float) -> AdapterSet:
    """Factors of two layers, alpha 3 and rank 2; the second change is 2 % of the first."""
    rng, made = torch.Generator().manual_seed(1), {}
    for name, height, width, small in (("0", 15, 6, 1.0), ("1", 8, 15, 0.02)):
        made |= {
            f"lycoris_{name}.lora_up.weight": torch.randn(height, 2, generator=rng) * size * small,
            f"lycoris_{name}.lora_down.weight": torch.randn(2, width, generator=rng),
            f"lycoris_{name}.alpha": torch.tensor(3.0),
        }
    return lyc_fx.load(made)


def by_hand(before: Tensor, after: Tensor, change: Tensor) -> tuple[float, float]:
    """⟨W' - W, Δ⟩ and ⟨Δ, Δ⟩."""
    moved = after.double() - before.double()
    return float((moved * change).sum()), float(change.square().sum())


@pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
@pytest.mark.parametrize("size", [0.02, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("road", ROADS)
def test_by_hand(road: Road, dtype: torch.dtype, size: float, tmp_path: Path) -> None:
    model, adapters = net(dtype), low_rank(size)
    before = copy.deepcopy(model.state_dict())
    report, after = road(model, adapters, STRENGTH, tmp_path, lossy=True)
    sums = []
    for name, entry in zip(("0.weight", "1.weight"), adapters.entries, strict=True):
        factors = entry.adapter.factors()
        change = STRENGTH * 3 / 2 * factors["up"].double() @ factors["down"].double()
        left, asked = by_hand(before[name], after[name], change)
        assert report.kept[name] == pytest.approx(left / asked, rel=1e-7, abs=1e-12), name
        sums.append((left, asked))
    every = sum(left for left, _ in sums) / sum(asked for _, asked in sums)
    assert report.kept_overall == pytest.approx(every, rel=1e-7)
    found = report.to_dict()
    assert found["kept"] == dict(report.kept) and found["kept_overall"] == report.kept_overall
    assert "kept" in str(report).splitlines()[0]
    assert f"{100 * report.kept['1.weight']:.3g} %" in str(report).splitlines()[2]
    assert f"kept: {100 * every:.3g} % of the change" in str(report)
    if dtype == torch.float32:
        assert report.kept_overall == pytest.approx(1, abs=1e-5)
    elif dtype == torch.bfloat16 and size == 1e-3:
        assert report.kept["1.weight"] < 0.5 < report.kept_overall + 0.3, "there is something to see"


@pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v[0].name != "experts"], ids=variant_id)
def test_every_family_on_every_road(variant: Variant, tmp_path: Path) -> None:
    """In bfloat16, with the exact change of `oracle.py`, at a strength that leaves something to lose."""
    found = pairs(CASES, [variant])
    case = found[VARIANTS.index(variant) % len(found)][1]
    adapter = certain(variant, case.logical, seed=2)
    strength = 0.7 if variant[0].name in BASED or "magnitude" in variant[1] else 0.03
    model = case.net(torch.bfloat16)
    base = model.layer.weight.detach().clone()
    logical = base.t() if case.transposed else base
    change = adapted(adapter, logical, strength) - logical.double()
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    transposed = ("layer.weight",) if case.transposed else ()
    adapters = one(adapter)
    out = tmp_path / "out.safetensors"
    program = lyc_fx.splice(captured(case, torch.bfloat16), adapters, strength)
    reports = [
        lyc_fx.fold_checkpoint(
            tmp_path / "base.safetensors", adapters, out, strength, transposed=transposed, lossy=True
        ),
        lyc_fx.report(lyc_fx.fold(program, lossy=True)),
        lyc_fx.merge(model, adapters, strength, lossy=True),
    ]
    after = model.layer.weight.t() if case.transposed else model.layer.weight
    left, asked = by_hand(logical, after.detach(), change)
    for report in reports:
        assert report.kept == {"layer.weight": pytest.approx(left / asked, rel=1e-6)}
        assert report.kept_overall == report.kept["layer.weight"]


@pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
def test_experts_too(tmp_path: Path) -> None:
    variant = next(v for v in VARIANTS if v[0].name == "experts")
    adapter = certain(variant, (3, 5, 4), seed=2)
    base = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(3)).bfloat16()
    save_file({"experts.weight": base}, tmp_path / "base.safetensors")
    report = lyc_fx.fold_checkpoint(
        tmp_path / "base.safetensors", one(adapter, "experts"), tmp_path / "out.safetensors", 0.03, lossy=True
    )
    after = load_file(tmp_path / "out.safetensors")["experts.weight"]
    left, asked = by_hand(base, after, adapted(adapter, base, 0.03) - base.double())
    assert report.kept == {"experts.weight": pytest.approx(left / asked, rel=1e-6)}


UNIT = 2.0**-7
"""Between bfloat16 numbers from 1 to 2"""


def steps(whole: int, lost: int, *, shape: tuple[int, int] = (15, 6)) -> Tensor:
    """A change of 1.5, of which so many elements are one unit, and so many 0.4 of one, which rounds away."""
    change = torch.zeros(shape[0] * shape[1])
    change[:whole], change[whole : whole + lost] = UNIT, 0.4 * UNIT
    return change.reshape(shape) / STRENGTH


def flat() -> nn.Sequential:
    model = net(torch.bfloat16)
    with torch.no_grad():
        model[0].weight.fill_(1.5)
        model[1].weight.fill_(1.5)
    return model


def diffs(*changes: Tensor) -> AdapterSet:
    return many(**{f"lycoris_{n}": Full(diff=change) for n, change in enumerate(changes)})


@pytest.mark.parametrize("road", ROADS)
def test_less_than_nine_tenths_is_warned_of(road: Road, tmp_path: Path) -> None:
    kept = 10 / (10 + 0.16 * 30)
    with pytest.warns(RoundedAway, match=r"only 67\.6 % of the change is left after rounding; least of 0\.weight 67"):
        report, after = road(flat(), diffs(steps(10, 30)), STRENGTH, tmp_path)
    assert report.kept_overall == pytest.approx(kept, rel=1e-6)
    assert int((after["0.weight"] != 1.5).sum()) == 10


@pytest.mark.parametrize("road", ROADS)
def test_less_than_half_is_refused_and_all_is_as_before(road: Road, tmp_path: Path) -> None:
    model, adapters = flat(), diffs(steps(4, 80), steps(2, 0, shape=(8, 15)))
    before = copy.deepcopy(model.state_dict())
    (tmp_path / "out.safetensors").write_bytes(b"there before")
    left, asked = 4 + 2, 4 + 0.16 * 80 + 2
    said = rf"only {100 * left / asked:.3g} % of the change .* 0\.weight 23\.8 %: .*lyc_fx\.attach.*lossy=True"
    with pytest.raises(BadAdapter, match=said) as error:
        road(model, adapters, STRENGTH, tmp_path)
    assert "1.weight" not in str(error.value), "which is as it should be"
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert (tmp_path / "out.safetensors").read_bytes() == b"there before"
    assert {path.name for path in tmp_path.iterdir()} <= {"base.safetensors", "out.safetensors"}
    with pytest.warns(RoundedAway, match=r"least of 0\.weight 23\.8 %$"):
        report, after = road(model, adapters, STRENGTH, tmp_path, lossy=True)
    assert report.kept_overall == pytest.approx(left / asked, rel=1e-6)
    assert int((after["0.weight"] != 1.5).sum()) == 4


@pytest.mark.parametrize("road", ROADS)
def test_a_small_layer_alone_is_a_note(road: Road, tmp_path: Path) -> None:
    adapters = diffs(steps(90, 0), steps(1, 9, shape=(8, 15)))
    report, _ = road(flat(), adapters, STRENGTH, tmp_path)
    assert report.kept_overall == pytest.approx(91 / (91 + 0.16 * 9), rel=1e-6)
    assert report.notes == ("less than half of the change of 1 weight is left: 1.weight (41 %)",)


@pytest.mark.parametrize("road", ROADS)
def test_nothing_left_is_refused_and_nothing_asked_is_not(road: Road, tmp_path: Path) -> None:
    lost = diffs(steps(0, 90))
    with pytest.raises(BadAdapter, match=r"only 0 % of the change is left after rounding; least of 0\.weight 0 %"):
        road(flat(), lost, STRENGTH, tmp_path)
    zero = diffs(torch.zeros(15, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingChanged)
        report, _ = road(flat(), zero, STRENGTH, tmp_path)
        assert report.kept == {} and report.kept_overall is None and "kept" not in str(report)
        assert road(flat(), lost, 0.0, tmp_path)[0].kept_overall is None
        # What cancels in float64 up to its last digits is no change.
        third = diffs(torch.randn(15, 6, generator=torch.Generator().manual_seed(4)))
        both = [(third, 0.3), (third, 0.1), (third, -0.4)]
        assert road(flat(), both, 1.0, tmp_path)[0].kept == {}


@pytest.mark.parametrize("road", ROADS)
def test_what_fits_the_dtype_is_kept_to_the_bit(road: Road, tmp_path: Path) -> None:
    value = torch.randn(15, 6, generator=torch.Generator().manual_seed(4)).bfloat16()
    report, after = road(flat(), lyc_fx.load({"lycoris_0.set_weight": value}), 1.0, tmp_path)
    assert torch.equal(after["0.weight"], value) and report.kept == {"0.weight": 1.0}


def test_what_is_not_finite_does_not_count(tmp_path: Path) -> None:
    model = flat()
    with torch.no_grad():
        model[0].weight[14, 5] = torch.nan
        model[0].weight[13, 5] = torch.inf
    report, _ = merging(model, diffs(steps(40, 0)), STRENGTH, tmp_path, allow_nonfinite=True)
    assert report.kept["0.weight"] == pytest.approx(1.0, rel=1e-6)


@pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
@pytest.mark.parametrize("small", [True, False])
def test_blocks_and_threads_change_the_last_digits_at_most(
    small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = merging(net(torch.bfloat16), low_rank(1e-3), STRENGTH, tmp_path, lossy=True)[0]
    monkeypatch.setattr(blocks, "BLOCK", 30)
    monkeypatch.setattr(blocks, "WIDE", 40)
    for road in (merging, on_disk):
        report, _ = road(net(torch.bfloat16), low_rank(1e-3), STRENGTH, tmp_path, lossy=True)
        assert report.kept == pytest.approx(dict(whole.kept), rel=1e-12)


def large(road: Road, base: Tensor, change: Tensor, path: Path) -> float:
    model = nn.Sequential(nn.Linear(*reversed(base.shape), bias=False)).bfloat16()
    with torch.no_grad():
        model[0].weight.copy_(base)
    before = model[0].weight.detach().clone()
    report, after = road(model, diffs(change), STRENGTH, path, lossy=True)
    left, asked = by_hand(before, after["0.weight"], STRENGTH * change.double())
    assert report.kept_overall == report.kept["0.weight"]
    return report.kept["0.weight"] - left / asked


@pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
@pytest.mark.parametrize("road", [merging, on_disk])
def test_of_a_large_weight_a_sample_will_do_where_little_is_lost(road: Road, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(5)
    base, change = torch.randn(1100, 700, generator=rng), torch.randn(1100, 700, generator=rng)
    assert 0 < abs(large(road, base, change * 0.02, tmp_path)) < 0.01, "estimated"
    assert abs(large(road, base, change * 1e-4, tmp_path)) < 1e-9, "counted"
    assert abs(large(road, base, change * 1e-3, tmp_path)) < 1e-9, "counted"
    change *= 1e-5
    change[1001] = 1.0
    assert abs(large(road, base, change, tmp_path)) < 1e-6, "what matters is outside of the sample"
    change[:1001] = 0
    assert abs(large(road, base, change, tmp_path)) < 1e-6


@pytest.mark.parametrize("strength", [3e-4, 1e-4])
def test_stochastic_rounding_keeps_on_average_what_the_nearest_loses(strength: float, tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(5)
    base, change = torch.randn(300, 200, generator=rng).bfloat16(), torch.randn(300, 200, generator=rng)
    save_file({"0.weight": base}, tmp_path / "base.safetensors")
    files = tmp_path / "base.safetensors", diffs(change), tmp_path / "out.safetensors"
    with pytest.raises(BadAdapter, match="is left after rounding"):
        lyc_fx.fold_checkpoint(*files, strength)
    report = lyc_fx.fold_checkpoint(*files, strength, rounding="stochastic")
    assert report.kept_overall == pytest.approx(1, abs=0.1)


def test_a_wider_output_keeps_it(tmp_path: Path) -> None:
    save_file({"0.weight": torch.full((15, 6), 1.5).bfloat16()}, tmp_path / "base.safetensors")
    files = tmp_path / "base.safetensors", diffs(steps(0, 90)), tmp_path / "out.safetensors"
    report = lyc_fx.fold_checkpoint(*files, STRENGTH, dtype=torch.float32)
    assert report.kept_overall == pytest.approx(1, abs=1e-4)


def test_a_model_that_is_live_stays_as_it_was_set(tmp_path: Path) -> None:
    model = flat()
    live = lyc_fx.live(model)
    first = live.set(diffs(steps(50, 0)), STRENGTH)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadAdapter, match="is left after rounding"):
        live.set(diffs(steps(0, 90)), STRENGTH)
    assert live.report is first
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    live.restore()
    assert bool((model[0].weight == 1.5).all())
