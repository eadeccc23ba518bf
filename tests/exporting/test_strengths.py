"""No program keeps the strength that it was exported with where it takes one at each call."""

from pathlib import Path

import pytest
import torch
from exporting.models import apart, captured, inputs, lora, merged
from torch.fx import GraphModule

import lyc_fx

ADAPTED = lora(3, 2.0)


def slots() -> GraphModule:
    return lyc_fx.slots(lyc_fx.splice(captured(), ADAPTED, 0.7, rank=3))


def styles() -> GraphModule:
    return lyc_fx.styles(lyc_fx.splice(captured(), ADAPTED, 0.7))


@pytest.mark.parametrize("make", [slots, styles])
def test_another_strength_is_another_output(make: object, tmp_path: Path) -> None:
    lyc_fx.export(make(), tmp_path / "program.pt2", check=False)  # type: ignore[operator]
    artefact = lyc_fx.bind(tmp_path / "program.pt2")
    x, scale = inputs()
    if make is slots:
        artefact.set(ADAPTED)
    for strength in (0.2, -1.25, 0.7):
        artefact.strengths = torch.tensor([strength])
        found = artefact(x, scale=scale)
        assert apart(found, merged(ADAPTED, strength)) < 2e-6
        assert strength == 0.7 or apart(found, merged(ADAPTED, 0.7)) > 1e-2


def test_a_folded_program_takes_none(tmp_path: Path) -> None:
    lyc_fx.export(lyc_fx.fold(lyc_fx.splice(captured(), ADAPTED, 0.7)), tmp_path / "folded.pt2", check=False)
    artefact = lyc_fx.bind(tmp_path / "folded.pt2")
    with pytest.raises(lyc_fx.WrongArgument, match="it has 0 adapter sets"):
        artefact.strengths = [0.2]
