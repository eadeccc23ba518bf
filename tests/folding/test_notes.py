"""The notes of a fold are in the order of the weights, whichever thread merges one first."""

import time
from pathlib import Path

import pytest
import torch
from nets import many, random_for
from safetensors.torch import save_file
from torch import Tensor

import lyc_fx
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.bound import Binding

NAMES = [f"layer{number}" for number in range(8)]


def test_notes_are_in_the_order_of_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def doubts(self: Binding, target: str, weight: Tensor, *, transposed: bool) -> list[str]:
        time.sleep(0.02 * (8 - int(target[len("layer")])))  # the first weights are ready last
        return [f"{target}: doubtful", f"{target}: very doubtful"]

    monkeypatch.setattr(Binding, "doubts", doubts)
    monkeypatch.setattr("lyc_fx.checkpoint.workers.thread_count", lambda: 4)
    adapters = {}
    for name in NAMES:
        adapter = random_for((LoCon, LoCon.layouts[0]), (5, 4))
        assert adapter is not None
        adapters[name] = adapter
    save_file({f"{name}.weight": torch.ones(5, 4) for name in NAMES}, tmp_path / "base.safetensors")
    report = lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", many(**adapters), tmp_path / "out.safetensors")
    assert report.notes == tuple(f"{n}.weight: {very}doubtful" for n in NAMES for very in ("", "very "))
