"""Files that do not pass in a process without lyc-fx get no name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting.models import captured, lora
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import Unsupported
from lyc_fx.exporting.exported import to_exported_program
from lyc_fx.exporting.plain import plain
from lyc_fx.graph.program import facts, remember


def test_a_file_that_computes_something_else_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyc_fx.exporting import export

    wrong = lyc_fx.fold(lyc_fx.splice(captured(), lora(3, 2.0), 0.05))
    monkeypatch.setattr(export, "_exported", lambda program, path, real=export._exported: real(plain(wrong), path))
    with pytest.raises(Unsupported, match="in a fresh process the file computes something else"):
        lyc_fx.export(captured(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_load_there_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyc_fx.exporting import export

    monkeypatch.setattr(export, "plain", lambda program: program)  # the test's own class of results stays
    with pytest.raises(Unsupported, match=r"does not run in a fresh process: .*Result"):
        lyc_fx.export(captured(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(nn.functional.dropout(x, 0.3, training=True))


def test_random_numbers_are_the_same_there(tmp_path: Path) -> None:
    program = lyc_fx.capture(Noisy().eval(), (torch.randn(40, 6),), check=False)
    lyc_fx.export(program, tmp_path / "model.pt2")


def test_another_rank_is_tried_where_it_may_vary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose ranks are fixed, which says that they vary, gets no name."""
    from lyc_fx.exporting import export

    lifted = lyc_fx.slots(lyc_fx.splice(captured(), lora(3, 2.0), rank=4))

    def fixed(program: GraphModule, path: object) -> Any:
        slots = facts(program).slots
        assert slots is not None
        remember(program, slots=replace(slots, ranks={}))
        return to_exported_program(program)

    lyc_fx.export(lifted, tmp_path / "model.pt2")
    said = lyc_fx.bind(tmp_path / "model.pt2").manifest
    monkeypatch.setattr(export, "_exported", fixed)
    monkeypatch.setattr(export.Manifest, "of", lambda *_: said)
    with pytest.raises(Unsupported, match=r"other.pt2: nothing was written: the file does not run"):
        lyc_fx.export(lifted, tmp_path / "other.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt2"]
