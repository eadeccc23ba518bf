"""What changed: how much of each weight, where nothing did, and what is not finite, on every road."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.binding.report import NothingChanged, Report
from lyc_fx.errors import BadAdapter
from lyc_fx.merging.effect import Effect

Road = Callable[[nn.Module, AdapterSet, float, Path], Report]


def net(dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 8)).to(dtype)


def factors(*, zero: bool = False, second: bool = True) -> AdapterSet:
    generator = torch.Generator().manual_seed(1)

    def of(out: int, inner: int, zero: bool = False) -> dict[str, Tensor]:
        up = torch.randn(out, 2, generator=generator).double() * (not zero)
        return {"lora_up.weight": up, "lora_down.weight": torch.randn(2, inner, generator=generator).double()}

    made = {f"lycoris_0.{k}": t for k, t in of(15, 6, zero).items()}
    return lyc_fx.load(made | ({f"lycoris_1.{k}": t for k, t in of(8, 15).items()} if second else {}))


def merging(model: nn.Module, adapters: AdapterSet, strength: float, path: Path, **options: bool) -> Report:
    return lyc_fx.merge(model, adapters, strength, **options)


def swapping(model: nn.Module, adapters: AdapterSet, strength: float, path: Path, **options: bool) -> Report:
    return lyc_fx.live(model).set(adapters, strength, **options)


def on_disk(model: nn.Module, adapters: AdapterSet, strength: float, path: Path, **options: bool) -> Report:
    save_file(model.state_dict(), path / "base.safetensors")
    return lyc_fx.fold_checkpoint(path / "base.safetensors", adapters, path / "out.safetensors", strength, **options)


def in_a_graph(model: nn.Module, adapters: AdapterSet, strength: float, path: Path, **options: bool) -> Report:
    x = torch.randn(2, model[0].in_features).to(model[0].weight.dtype)
    return lyc_fx.report(lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, strength), **options))


ROADS = (merging, swapping, on_disk, in_a_graph)


@pytest.mark.parametrize("road", ROADS)
def test_the_report_says_how_much_each_weight_changed(road: Road, tmp_path: Path) -> None:
    model, adapters = net(), factors()
    wanted = {}
    for index, entry in enumerate(adapters.entries):
        up, down = (entry.adapter.factors()[n] for n in ("up", "down"))
        wanted[f"{index}.weight"] = float(0.7 * (up @ down).norm() / model[index].weight.detach().norm())
    report = road(model, adapters, 0.7, tmp_path)
    assert report.changes == pytest.approx(wanted, rel=1e-9)
    assert report.unchanged == () and f"{100 * wanted['0.weight']:.3g} %" in str(report)


@pytest.mark.parametrize("road", ROADS)
def test_a_weight_that_did_not_change_is_named(road: Road, tmp_path: Path) -> None:
    report = road(net(torch.bfloat16), factors(zero=True), 0.7, tmp_path)
    assert report.unchanged == ("0.weight",)
    assert any("1 of 2 adapted weights did not change at all: 0.weight" in note for note in report.notes)


@pytest.mark.parametrize("road", [merging, on_disk])
@pytest.mark.parametrize(
    ("adapters", "strength", "why"),
    [
        (factors(zero=True, second=False), 1.0, "zero, or too weak"),
        (factors(), 1e-9, "zero, or too weak"),
        (factors(), 0.0, "strength is 0"),
    ],
    ids=["zero factors", "rounded away", "strength 0"],
)
def test_it_is_said_where_nothing_changed(
    road: Road, adapters: AdapterSet, strength: float, why: str, tmp_path: Path
) -> None:
    model = net(torch.bfloat16)
    before = copy.deepcopy(model.state_dict())
    with pytest.warns(NothingChanged, match=why):
        report = road(model, adapters, strength, tmp_path, lossy=True)  # type: ignore[call-arg]
    state = load_file(tmp_path / "out.safetensors") if road is on_disk else model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())
    assert set(report.unchanged) == set(report.changes) != set()


@pytest.mark.parametrize("road", [merging, on_disk])
def test_no_adapter_is_said(road: Road, tmp_path: Path) -> None:
    with pytest.warns(NothingChanged, match="there is no adapter to apply"):
        road(net(), [], 1.0, tmp_path)


@pytest.mark.parametrize(("adapters", "strength", "why"), [([], 1.0, "no adapter"), (factors(), 0.0, "strength is 0")])
def test_a_splice_of_nothing_is_said(adapters: AdapterSet, strength: float, why: str) -> None:
    program = lyc_fx.capture(net(), (torch.randn(2, 6).double(),))
    with pytest.warns(NothingChanged, match=why):
        adapted = lyc_fx.splice(program, adapters, strength)
    assert lyc_fx.show(adapted) == lyc_fx.show(program)
    assert lyc_fx.report(lyc_fx.splice(program, factors(), 0.7)).nothing_changed is None


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_base_that_is_not_finite_is_refused(road: Road, value: float, tmp_path: Path) -> None:
    model, adapters = net(), factors()
    with torch.no_grad():
        model[1].weight[3, 4] = value
        model[0].bias[0] = torch.nan  # which has no adapter
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadAdapter, match=r"1\.weight: 1 of 120 values of the base are NaN or infinite"):
        road(model, adapters, 0.7, tmp_path)
    torch.testing.assert_close(dict(model.state_dict()), dict(before), rtol=0, atol=0, equal_nan=True)
    assert not (tmp_path / "out.safetensors").exists()
    report = road(model, adapters, 0.7, tmp_path, allow_nonfinite=True)  # type: ignore[call-arg]
    assert len(report.changes) == 2


def test_an_effect_is_measured_on_any_shape_and_dtype() -> None:
    for shape in [(), (1,), (9000,), (0, 3), (3, 0), (70, 90), (2, 9000), (9000, 2), (40, 30, 3, 3)]:
        for dtype in (torch.float8_e4m3fn, torch.bfloat16, torch.float64):
            before = torch.full(shape, 2.0).to(dtype)
            after = torch.full(shape, 3.0).to(dtype)
            effect = Effect.of(before, after) + Effect.of(before, after)
            assert effect.relative == (0.5 if before.numel() else 0.0)
            assert not Effect.of(before, before).changed and Effect.of(before, before).relative == 0
    few = torch.zeros(300, 300)
    few[299, 298] = 1
    assert Effect.of(torch.zeros(300, 300), few).changed, "also where the sample does not show it"


def test_what_only_bits_show_is_a_change() -> None:
    ones, signed = torch.ones(3).to(torch.float8_e4m3fn), torch.tensor([1.0, 0.0, 1.0]).to(torch.float8_e4m3fn)
    assert Effect.of(ones, ones).relative == 0
    assert 0 < Effect.of(signed, torch.tensor([1.0, -0.0, 1.0]).to(torch.float8_e4m3fn)).relative < 1e-100


def test_what_is_not_finite_and_stays_so_is_no_change() -> None:
    before = torch.tensor([1.0, torch.nan, torch.inf, 0.0])
    for dtype in (torch.float64, torch.float16, torch.float8_e5m2):
        assert not Effect.of(before.to(dtype), before.to(dtype)).changed
    for place, value in ((0, torch.nan), (1, 0.0), (1, 2.0), (2, 2.0), (2, -torch.inf), (3, torch.nan)):
        after = before.clone()
        after[place] = value
        effect = Effect.of(before, after)
        assert effect.changed and effect.relative > 0, (place, value)


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_change_outside_of_the_sample_counts(road: Road, dtype: torch.dtype, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 512)).to(dtype)
    diff = torch.zeros(512, 512)
    diff[511, 510] = 3.0
    before = model[0].weight.detach().double()
    adapters = lyc_fx.load({"lycoris_0.diff": diff})
    with warnings.catch_warnings():
        warnings.simplefilter("error", NothingChanged)
        report = road(model, adapters, 1.0, tmp_path)
    assert report.unchanged == () and report.nothing_changed is None
    assert report.changes["0.weight"] == pytest.approx(3.0 / float(before.norm()), rel=0.1)
