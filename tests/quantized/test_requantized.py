"""Merges into quantized weights, which are quantized again, and what that loses."""

import copy

import pytest
import torch
from oracle import kept
from rounded import Rounded, dequantize, quantize
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, Unsupported

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.Tanh(), nn.Linear(15, 7)).double().requires_grad_(False)


def change(out: int, inner: int, size: float = 0.3) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(out)
    up, down = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((out, 2), (2, inner)))
    return up * size, down


def factors(size: float = 0.3) -> dict[str, Tensor]:
    found = {}
    for name, shape in (("0", (15, 6)), ("2", (7, 15))):
        up, down = change(*shape, size)
        found |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}
    return found


def test_the_weight_is_quantized_as_before_and_the_report_says_what_is_kept() -> None:
    model = quantize(net(), levels=31)
    before = [model[n].weight.dequantize() for n in (0, 2)]
    report = lyc_fx.merge(model, lyc_fx.load(factors()), 0.7, requantize=True)
    for n, base, shape in zip((0, 2), before, ((15, 6), (7, 15)), strict=True):
        up, down = change(*shape)
        wanted = base + 0.7 * 3.0 / 2 * up @ down
        assert isinstance(model[n].weight, Rounded) and isinstance(model[n].weight, nn.Parameter)
        assert torch.equal(model[n].weight.numbers, Rounded.of(wanted.float().double(), 31).numbers)
        lost = (model[n].weight.dequantize() - wanted).norm() / (wanted - base).norm()
        assert 1e-3 < lost < 0.1
        share = kept(base, wanted, model[n].weight.dequantize())
        assert report.kept[f"{n}.weight"] == pytest.approx(share, rel=1e-5) and abs(share - 1) < lost
        assert report.to_dict()["kept"][f"{n}.weight"] == report.kept[f"{n}.weight"]
    assert "kept" in str(report).splitlines()[0] and f"{100 * report.kept['0.weight']:.3g} %" in str(report)
    torch.testing.assert_close(model(X), dequantize(copy.deepcopy(model))(X))


def test_a_plain_merge_is_as_without() -> None:
    model = net()
    report = lyc_fx.merge(model, lyc_fx.load(factors()), 0.7, requantize=True)
    assert report.kept == {"0.weight": 1.0, "2.weight": 1.0}
    wanted = net()
    lyc_fx.merge(wanted, lyc_fx.load(factors()), 0.7)
    assert torch.equal(model[0].weight, wanted[0].weight)


@pytest.mark.parametrize(("levels", "size"), [(127, 1e-6), (3, 0.01)], ids=["too small", "too coarse"])
def test_a_change_that_would_be_lost_is_refused_and_all_is_as_before(levels: int, size: float) -> None:
    model = quantize(net(), levels)
    given = factors() | {name: value for name, value in factors(size).items() if name.startswith("2.")}
    held, y = [model[n].weight for n in (0, 2)], model(X)
    with pytest.raises(
        BadAdapter, match=r"2\.weight: quantized again as a .*Rounded.* lost: .*lyc_fx\.attach"
    ) as error:
        lyc_fx.merge(model, lyc_fx.load(given), 0.7, requantize=True)
    number = float(str(error.value).split("is ")[1].split(" ")[0])
    assert number >= 1
    assert model[0].weight is held[0]
    assert model[2].weight is held[1] and torch.equal(model(X), y)
    report = lyc_fx.merge(model, lyc_fx.load(given), 0.7, requantize=True, lossy=True)
    assert model[2].weight is not held[1] and report.kept_overall == pytest.approx(1, abs=0.3)


def test_no_change_leaves_the_weight_as_it_is() -> None:
    model = quantize(net())
    held = model[0].weight
    zero = {name: value * 0 if "up" in name and name.startswith("0") else value for name, value in factors().items()}
    report = lyc_fx.merge(model, lyc_fx.load(zero), 0.7, requantize=True)
    assert model[0].weight is held and "0.weight" not in report.kept and report.unchanged == ("0.weight",)
    held = model[2].weight
    with pytest.warns(lyc_fx.binding.report.NothingChanged):
        lyc_fx.merge(model, lyc_fx.load(factors()), 0.0, requantize=True)
    assert model[2].weight is held


def test_a_class_that_cannot_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    model = quantize(net())
    monkeypatch.delattr(Rounded, "requantize")
    held = model[0].weight
    with pytest.raises(Unsupported, match=r"0\.weight is a .*Rounded.*how to make another one.*lyc_fx\.attach"):
        lyc_fx.merge(model, lyc_fx.load(factors()), 0.7, requantize=True)
    assert model[0].weight is held


def test_attached_adapters_read_what_was_merged_at_the_next_set() -> None:
    model = quantize(net())
    lyc_fx.merge(model, lyc_fx.load(factors()), 0.7, requantize=True)
    wanted = dequantize(copy.deepcopy(model))
    lyc_fx.merge(wanted, lyc_fx.load(factors()), -0.2)
    lyc_fx.attach(model, lyc_fx.load(factors()), -0.2)
    torch.testing.assert_close(model(X), wanted(X), rtol=1e-9, atol=1e-9)
