"""The checkpoint road where names, shapes and dtypes alone do not say what a weight is."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from nets import random_for
from oracle import delta
from safetensors.torch import load_file, save_file
from torch import Tensor

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import BadAdapter, BadFile, LycFxError

GPT2 = {"attn.weight": (4, 12), "attn.bias": (12,), "proj.weight": (4, 4), "proj.bias": (4,), "head.weight": (4, 4)}
LINEAR = {"attn.weight": (12, 4), "attn.bias": (12,), "proj.weight": (4, 4), "proj.bias": (4,)}


def plain(shape: tuple[int, ...]) -> Adapter:
    adapter = random_for((LoCon, LoCon.layouts[0]), shape)
    assert adapter is not None
    return adapter


def adapters(**shapes: tuple[int, ...]) -> AdapterSet:
    return AdapterSet(tuple(Entry(name, "weight", plain(shape), (f"{name}.x",)) for name, shape in shapes.items()))


def saved(folder: Path, tensors: dict[str, Tensor]) -> Path:
    save_file(tensors, folder / "base.safetensors")
    return folder / "base.safetensors"


def folded(folder: Path, tensors: dict[str, Tensor], stack: AdapterSet, **options: Sequence[str]) -> dict[str, Tensor]:
    out = folder / "out.safetensors"
    lyc_fx.fold_checkpoint(saved(folder, tensors), stack, out, **options)  # type: ignore[arg-type]
    return load_file(out)


def random(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    return {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}


def test_the_bias_tells_how_a_weight_is_stored(tmp_path: Path) -> None:
    tensors = random(GPT2)
    out = folded(tmp_path, tensors, adapters(attn=(12, 4), head=(4, 4)))
    torch.testing.assert_close(out["attn.weight"], tensors["attn.weight"] + delta(plain((12, 4)), (12, 4)).t())
    torch.testing.assert_close(out["head.weight"], tensors["head.weight"] + delta(plain((4, 4)), (4, 4)))


def test_a_square_weight_among_transposed_ones_is_no_guess(tmp_path: Path) -> None:
    tensors = random(GPT2)
    with pytest.raises(BadAdapter, match=r"proj\.weight: square.* attn\.weight \(4, 12\).*--transposed.*!proj\.weight"):
        folded(tmp_path, tensors, adapters(attn=(12, 4), proj=(4, 4)))
    assert os.listdir(tmp_path) == ["base.safetensors"]
    change = delta(plain((4, 4)), (4, 4))
    for patterns, wanted in (["proj.*"], change.t()), (["*", "!pr*"], change), (["!proj.weight"], change):
        out = folded(tmp_path, tensors, adapters(attn=(12, 4), proj=(4, 4)), transposed=patterns)
        torch.testing.assert_close(out["proj.weight"], tensors["proj.weight"] + wanted)
        torch.testing.assert_close(out["attn.weight"], tensors["attn.weight"] + delta(plain((12, 4)), (12, 4)).t())


def test_a_square_weight_among_linear_layers_is_one_of_them(tmp_path: Path) -> None:
    tensors = random(LINEAR)
    out = folded(tmp_path, tensors, adapters(proj=(4, 4)))
    torch.testing.assert_close(out["proj.weight"], tensors["proj.weight"] + delta(plain((4, 4)), (4, 4)))


def test_a_weight_without_bias_that_fits_only_turned(tmp_path: Path) -> None:
    with pytest.raises(BadAdapter, match="it would fit the transpose"):
        folded(tmp_path, random({"attn.weight": (4, 12)}), adapters(attn=(12, 4)))


@pytest.mark.parametrize(
    "parts",
    [
        ("weight_g", "weight_v"),  # of other sizes than weight norm has
        ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ],
)
@pytest.mark.parametrize("name", ["block.attn", "lycoris_block_attn"])
def test_the_parts_of_a_computed_weight_are_named(parts: tuple[str, str], name: str, tmp_path: Path) -> None:
    tensors = {f"block.attn.{parts[0]}": torch.ones(4, 2), f"block.attn.{parts[1]}": torch.ones(4, 4)}
    with pytest.raises(BadAdapter, match=rf"computed from block\.attn\.{parts[0]}, block\.attn\.{parts[1]}"):
        folded(tmp_path, tensors, adapters(**{name: (4, 4)}))


@pytest.mark.parametrize(
    ("mark", "shape"),
    [("attn.weight_scale", (2, 2)), ("attn.scale_weight", (1, 4)), ("attn.weight_scale_inv", (1,)), ("scaled_fp8", ())],
)
def test_a_scale_that_is_not_read_is_refused(mark: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    tensors = {"attn.weight": torch.ones(4, 4).to(torch.float8_e4m3fn), mark: torch.full(shape, 0.5)}
    with pytest.raises(LycFxError, match=rf"float8_e4m3fn in units of {mark}"):
        folded(tmp_path, tensors, adapters(attn=(4, 4)))


def test_overflow_leaves_no_output(tmp_path: Path) -> None:
    tensors = {"attn.weight": torch.full((4, 4), 6e4, dtype=torch.float16)}
    with pytest.raises(BadAdapter, match=r"beyond the range of torch\.float16"):
        lyc_fx.fold_checkpoint(saved(tmp_path, tensors), adapters(attn=(4, 4)), tmp_path / "out.safetensors", 1e5)
    assert os.listdir(tmp_path) == ["base.safetensors"]


def test_odd_tensors_are_copied(tmp_path: Path) -> None:
    tensors = {
        "é.weight": torch.randn(3, 3).half(),
        "日本": torch.zeros(0, 5),
        "scalar": torch.tensor(3),
        "odd": torch.arange(3, dtype=torch.uint8),
    }
    out = folded(tmp_path, tensors, adapters(é=(3, 3)))
    assert sorted(out) == sorted(tensors)
    assert all(torch.equal(out[name], tensors[name]) for name in tensors if name != "é.weight")


def test_an_output_that_is_no_file_stays_what_it_is(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out.safetensors")
    with pytest.raises(BadFile, match="not a regular file"):
        lyc_fx.fold_checkpoint(saved(tmp_path, random(LINEAR)), adapters(proj=(4, 4)), tmp_path / "out.safetensors")
    assert (tmp_path / "out.safetensors").is_fifo()


def test_the_longest_file_name(tmp_path: Path) -> None:
    out = tmp_path / ("x" * (255 - len(".safetensors")) + ".safetensors")
    lyc_fx.fold_checkpoint(saved(tmp_path, random(LINEAR)), adapters(proj=(4, 4)), out)
    assert out.is_file()
