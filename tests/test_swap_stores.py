"""Where the base of a live model is kept: files that are not the base, and stores that fail."""

import copy
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from swaps import A, bits, net
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadFile, Unsupported

pytestmark = pytest.mark.filterwarnings(
    "ignore::lyc_fx.binding.report.NothingChanged"
)  # a merge of {} is among the choices


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
