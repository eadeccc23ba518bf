"""`lyc-fx plan`: a table for a program on disk, and the plan as a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import lyc_fx
from lyc_fx.cli import app


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program with a dynamic size, as lyc-fx writes it, and an adapter."""
    folder, model = tmp_path_factory.mktemp("plan"), nn.Sequential(nn.Linear(64, 96), nn.GELU(), nn.Linear(96, 64))
    program = lyc_fx.capture(model, (torch.randn(4, 64),), dynamic_shapes={"input": "rows _"})
    lyc_fx.export(program, folder / "model.pt2")
    factors = {"lycoris_0.lora_up.weight": torch.randn(96, 2), "lycoris_0.lora_down.weight": torch.randn(2, 64)}
    save_file(factors, folder / "style.safetensors")
    (folder / "broken.pt2").write_bytes(b"no program")
    return folder


def run(folder: Path, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(
        app, ["plan", *(str(folder / a) if "." in a[-12:] and "=" not in a else a for a in arguments)]
    )
    return done.exit_code, done.output


def test_it_prints_a_table_and_saves_the_plan(folder: Path) -> None:
    code, said = run(
        folder, "model.pt2", "style.safetensors", "--size", "input.shape[0]=512", "--memory", "0", "-o", "plan.json"
    )
    assert code == 0, said
    rows = said.splitlines()
    header = next(line for line in rows if line.startswith("layer"))
    assert header.split()[:4] == ["layer", "form", "weight", "adapters"]
    [row] = [line for line in rows if line.startswith("linear ")]
    assert "0.weight" in row and "low rank" in row and row.split()[1] in ("chain", "rebuilt")
    [layer] = lyc_fx.Plan.load(folder / "plan.json").layers
    assert layer.site == "linear" and layer.form == row.split()[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.pt2", "style.safetensors"), "there is no such file"),
        (("broken.pt2", "style.safetensors"), "broken.pt2 is no .pt2 program"),
        (("style.safetensors", "style.safetensors"), "style.safetensors is no .pt2 program"),
        (("model.pt2", "style.safetensors", "--size", "rows"), "write NAME=N"),
        (
            ("model.pt2", "style.safetensors", "--size", "tokens=3"),
            "there is no dynamic size tokens: there are input.shape[0]",
        ),
    ],
)
def test_mistakes_are_said(folder: Path, arguments: tuple[str, ...], message: str) -> None:
    code, said = run(folder, *arguments)
    assert code != 0 and message in " ".join(said.split()), said
