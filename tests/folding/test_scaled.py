"""float8 weights in units of a scale: merged as what they mean, and rescaled where the merged values need it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import random_for
from oracle import delta, kept
from safetensors.torch import load_file, save_file
from torch import Tensor

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.report import NothingChanged
from lyc_fx.checkpoint import merger
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.merging import blocks

pytestmark = pytest.mark.filterwarnings("ignore::lyc_fx.binding.report.RoundedAway")
SHAPE, STRENGTH = (15, 7), 0.7
DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
SCALES = ((), (1,), (15,), (15, 1))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", 30)


def adapter() -> Adapter:
    made = random_for((LoCon, LoCon.layouts[0]), SHAPE, rank=3)
    assert made is not None
    return made


def stack() -> AdapterSet:
    return AdapterSet((Entry("fc", "weight", adapter(), ("fc.x",)),))


def checkpoint(
    dtype: torch.dtype, shape: tuple[int, ...], size: float, leaf: str = "weight_scale"
) -> dict[str, Tensor]:
    """Weights of about `size`, as large as the scale allows."""
    generator = torch.Generator().manual_seed(5)
    real = torch.randn(SHAPE, generator=generator) * size
    most = real.abs().amax(1).reshape(shape) if torch.Size(shape).numel() > 1 else real.abs().max().reshape(shape)
    scale = most / torch.finfo(dtype).max
    codes = real / (scale.reshape(-1, 1) if scale.numel() > 1 else scale)
    same = {"other.weight": codes[:5].to(dtype), f"other.{leaf}": scale.reshape(-1)[:1].clone()}
    return {"fc.weight": codes.to(dtype), f"fc.{leaf}": scale, "fc.bias": torch.randn(15)} | same


def folded(folder: Path, tensors: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
    save_file(tensors, folder / "base.safetensors")
    options = {"lossy": True} | options
    lyc_fx.fold_checkpoint(folder / "base.safetensors", stack(), folder / "out.safetensors", STRENGTH, **options)
    return load_file(folder / "out.safetensors")


def raw(tensor: Tensor) -> bytes:
    return bytes(tensor.reshape(-1).view(torch.uint8).tolist())


def by_hand(tensors: dict[str, Tensor], leaf: str) -> tuple[Tensor, Tensor]:
    """The merged weight in float64, and its scale."""
    dtype, scale = tensors["fc.weight"].dtype, tensors[f"fc.{leaf}"].double()
    column = scale.reshape(-1, 1) if scale.numel() > 1 else scale.reshape(1, 1)
    real = tensors["fc.weight"].double() * column + STRENGTH * delta(adapter(), SHAPE)
    limit = torch.finfo(dtype).max
    most = real.abs().amax(1, keepdim=True) if scale.numel() > 1 else real.abs().max().reshape(1, 1)
    new = torch.where(most > column * limit, most / limit, column)
    return real, new.reshape(scale.shape)


@pytest.mark.parametrize("size", [0.01, 300.0], ids=["grows", "stays"])
@pytest.mark.parametrize("shape", SCALES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_merged_as_what_it_means(dtype: torch.dtype, shape: tuple[int, ...], size: float, tmp_path: Path) -> None:
    leaf = "scale_weight" if len(shape) == 1 else "weight_scale"
    tensors = checkpoint(dtype, shape, size, leaf)
    tensors["fc.weight"] = (tensors["fc.weight"].float() * (0.9 if size > 1 else 1.0)).to(dtype)
    out = folded(tmp_path, tensors)
    real, scale = by_hand(tensors, leaf)
    given = out[f"fc.{leaf}"]
    assert given.shape == shape and given.dtype == torch.float32
    torch.testing.assert_close(given.double(), scale, rtol=2e-7, atol=0)
    assert torch.equal(given, tensors[f"fc.{leaf}"]) == (size > 1), "it changes only where it must"
    assert out["fc.weight"].dtype == dtype and torch.isfinite(out["fc.weight"].float()).all()
    wanted = (real / given.double().reshape(-1, 1)).to(dtype)
    assert torch.equal(out["fc.weight"].float(), wanted.float()), "correctly rounded in units of its scale"
    meant = out["fc.weight"].double() * given.double().reshape(-1, 1)
    unit = torch.finfo(dtype).eps / 2
    least = torch.finfo(dtype).smallest_normal * given.double().max()
    assert ((meant - real).abs() <= unit * real.abs().clamp(min=least) * 1.001).all()
    assert not torch.equal(out["fc.weight"].float(), tensors["fc.weight"].float())
    for name in ("fc.bias", "other.weight", f"other.{leaf}"):
        assert raw(out[name]) == raw(tensors[name]), "no adapter, same bytes"


@pytest.mark.parametrize("size", [0.01, 300.0], ids=["grows", "stays"])
@pytest.mark.parametrize("shape", [(), (15, 1)], ids=str)
def test_the_report_says_how_much_the_weight_changed(shape: tuple[int, ...], size: float, tmp_path: Path) -> None:
    """The weight, and not its codes, which mean other numbers where the scale grows."""
    tensors = checkpoint(torch.float8_e4m3fn, shape, size)
    save_file(tensors, tmp_path / "base.safetensors")
    files = tmp_path / "base.safetensors", stack(), tmp_path / "out.safetensors"
    report = lyc_fx.fold_checkpoint(*files, STRENGTH, lossy=True)
    before, after = (
        each["fc.weight"].double() * each["fc.weight_scale"].double().reshape(-1, 1)
        for each in (tensors, load_file(tmp_path / "out.safetensors"))
    )
    assert report.changes["fc.weight"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    share = kept(before, before + STRENGTH * delta(adapter(), SHAPE), after)
    assert report.kept == {"fc.weight": pytest.approx(share, rel=1e-9)} and report.kept_overall is not None
    assert share < 0.9 if size > 1 else abs(share - 1) < 0.02, "there is something to see"
    if share < 0.5:
        with pytest.raises(BadAdapter, match=r"is left after rounding; least of fc\.weight"):
            lyc_fx.fold_checkpoint(*files, STRENGTH)


@pytest.mark.parametrize("shape", [(1,), (15, 1)], ids=str)
def test_nan_stays_nan_and_does_not_spread(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, shape, 0.01)
    whole = folded(tmp_path, tensors)
    tensors["fc.weight"].view(torch.uint8)[3, 2] = 0x7F
    out = folded(tmp_path, tensors, allow_nonfinite=True)
    broken = torch.isnan(out["fc.weight"].float())
    assert broken[3, 2] and broken.sum() == 1
    rows = [row for row in range(15) if row != 3]
    if torch.equal(out["fc.weight_scale"], whole["fc.weight_scale"]) or len(shape) == 2:
        assert torch.equal(out["fc.weight"].float()[rows], whole["fc.weight"].float()[rows])
    assert torch.isfinite(out["fc.weight_scale"]).all()


def test_a_scale_in_another_shard_and_an_input_scale_beside(tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (1,), 0.01) | {"fc.input_scale": torch.tensor(3.0)}
    alone = folded(tmp_path, tensors)
    folder = tmp_path / "model"
    folder.mkdir()
    first = {"fc.weight"}
    save_file({n: t for n, t in tensors.items() if n in first}, folder / "model-00002-of-00002.safetensors")
    save_file({n: t for n, t in tensors.items() if n not in first}, folder / "model-00001-of-00002.safetensors")
    lyc_fx.fold_checkpoint(folder, stack(), tmp_path / "merged", STRENGTH)
    shards = [load_file(path) for path in sorted((tmp_path / "merged").glob("*.safetensors"))]
    for name, tensor in (shards[0] | shards[1]).items():
        assert raw(tensor) == raw(alone[name]), name
    assert float(alone["fc.input_scale"]) == 3.0


def test_stochastic_rounding_in_units_of_the_scale(tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (15, 1), 0.5)
    near = folded(tmp_path, tensors)
    drawn = [folded(tmp_path, tensors, rounding="stochastic", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(drawn[0]["fc.weight"].float(), drawn[1]["fc.weight"].float())
    assert not torch.equal(drawn[0]["fc.weight"].float(), drawn[2]["fc.weight"].float())
    assert all(torch.equal(each["fc.weight_scale"], near["fc.weight_scale"]) for each in drawn)
    step = near["fc.weight"].float().abs().clamp(min=2**-6) * 2**-3
    assert all(((each["fc.weight"].float() - near["fc.weight"].float()).abs() <= step * 1.01).all() for each in drawn)


def test_a_scale_beyond_its_dtype(tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (1,), 1.0)
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.raises(BadAdapter, match=r"fc\.weight_scale: the merged weight is beyond the range"):
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", stack(), tmp_path / "out.safetensors", 1e60)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_rows_of_scale_zero_are_zero(tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (15, 1), 1.0)
    tensors["fc.weight_scale"][4] = 0.0
    out = folded(tmp_path, tensors)
    real, scale = by_hand(tensors, "weight_scale")
    torch.testing.assert_close(out["fc.weight_scale"].double(), scale, rtol=2e-7, atol=0)
    wanted = (real / out["fc.weight_scale"].double()).to(torch.float8_e4m3fn)
    assert torch.equal(out["fc.weight"].float(), wanted.float()) and out["fc.weight_scale"][4] > 0
    save_file(tensors, tmp_path / "base.safetensors")
    half = AdapterSet(
        (Entry("fc", "weight", replace(adapter(), up=adapter().up * (torch.arange(15) > 7)[:, None]), ("x",)),)
    )
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", half, tmp_path / "out.safetensors", STRENGTH)
    out = load_file(tmp_path / "out.safetensors")
    assert out["fc.weight_scale"][4] == 0 and not out["fc.weight"][4].float().any(), "still zero"


def test_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, real = [], merger.fit_scale
    monkeypatch.setattr(merger, "fit_scale", lambda *args: (measured.append(args[0]), real(*args))[1])
    folded(tmp_path, {n: t for n, t in checkpoint(torch.float8_e4m3fn, (1,), 0.01).items()})
    assert measured == ["fc.weight_scale"]


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_a_broken_scale(value: float, tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (1,), 1.0)
    tensors["fc.weight_scale"].fill_(value)
    with pytest.raises(BadAdapter, match=r"fc\.weight_scale: holds a scale that is not a positive number"):
        folded(tmp_path, tensors)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_another_dtype_would_tear_codes_and_scales_apart(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"is stored in units of fc\.weight_scale"):
        folded(tmp_path, checkpoint(torch.float8_e4m3fn, (1,), 1.0), dtype=torch.bfloat16)
    blocks_of_scales = {"fc.weight": torch.ones(SHAPE).to(torch.float8_e4m3fn), "fc.weight_scale_inv": torch.ones(2, 1)}
    save_file(blocks_of_scales, tmp_path / "base.safetensors")
    for others in (stack(), AdapterSet(())):  # also where nothing is merged
        with pytest.raises((BadAdapter, Unsupported), match=r"in units of fc\.weight_scale_inv"):
            lyc_fx.fold_checkpoint(
                tmp_path / "base.safetensors", others, tmp_path / "o", strict=False, dtype=torch.bfloat16
            )
    del_scale = {"fc.weight": torch.ones(SHAPE).to(torch.float8_e4m3fn)}
    assert folded(tmp_path, del_scale, dtype=torch.bfloat16)["fc.weight"].dtype == torch.bfloat16


def test_strength_zero_and_no_adapter_leave_every_byte(tmp_path: Path) -> None:
    tensors = checkpoint(torch.float8_e4m3fn, (), 1.0)
    save_file(tensors, tmp_path / "base.safetensors")
    with pytest.warns(NothingChanged):
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", stack(), tmp_path / "out.safetensors", 0.0)
    out = load_file(tmp_path / "out.safetensors")
    assert all(raw(out[n]) == raw(t) for n, t in tensors.items())
