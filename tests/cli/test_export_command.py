"""`lyc-fx export` and `lyc-fx pack`, on files alone."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

import lyc_fx
from lyc_fx.cli import app


def lora(seed: int, rank: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shapes = {"0": (15, 6), "2": (7, 15)}
    found = {f"lycoris_{n}.lora_up.weight": torch.randn(out, rank, generator=rng) for n, (out, _) in shapes.items()}
    found |= {f"lycoris_{n}.lora_down.weight": torch.randn(rank, i, generator=rng) for n, (_, i) in shapes.items()}
    return found | {f"lycoris_{n}.alpha": torch.tensor(2.0) for n in shapes}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that torch alone has exported, and two adapters."""
    found = tmp_path_factory.mktemp("export")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 15), nn.GELU(), nn.Linear(15, 7)).eval()
    exported = torch.export.export(model, (torch.randn(4, 6),), dynamic_shapes=({0: torch.export.Dim("rows")},))
    torch.export.save(exported, found / "model.pt2")
    save_file(lora(0, 3), found / "ink.safetensors")
    save_file(lora(1, 2), found / "oil.safetensors")
    return found


def run(folder: Path, text: str) -> tuple[int, str]:
    words = [str(folder / word) if "." in word and not word[0].isdigit() else word for word in text.split()]
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.output


def wanted(folder: Path, stack: dict[str, float], x: Tensor) -> Tensor:
    program = lyc_fx.capture(torch.export.load(folder / "model.pt2"))
    sets = [(str(folder / name), strength) for name, strength in stack.items()]
    with torch.no_grad():
        found = lyc_fx.fold(lyc_fx.splice(program, sets))(x)
    assert isinstance(found, Tensor)
    return found


def test_a_program_is_folded(folder: Path) -> None:
    code, said = run(folder, "export model.pt2 ink.safetensors@0.5 oil.safetensors -o folded.pt2")
    assert code == 0, said
    assert said == f"wrote {folder / 'folded.pt2'} (folded)\n"
    x = torch.randn(3, 6)
    with torch.no_grad():
        y = torch.export.load(folder / "folded.pt2").module()(x)
    assert torch.equal(y, wanted(folder, {"ink.safetensors": 0.5, "oil.safetensors": 1.0}, x))


def test_slots_take_what_pack_makes(folder: Path) -> None:
    assert run(folder, "export model.pt2 ink.safetensors -o slots.pt2 --kind slots --no-check")[0] == 0
    code, said = run(folder, "pack oil.safetensors@0.6 --for slots.pt2 -o oil.packed.safetensors")
    assert code == 0 and "2 adapters in 6 inputs" in said, said
    artefact, x = lyc_fx.bind(folder / "slots.pt2"), torch.randn(3, 6)
    artefact.set(folder / "oil.packed.safetensors")
    torch.testing.assert_close(artefact(x), wanted(folder, {"oil.safetensors": 0.6}, x), rtol=1e-5, atol=1e-5)


def test_styles(folder: Path) -> None:
    assert (
        run(folder, "export model.pt2 ink.safetensors oil.safetensors -o styles.pt2 --kind styles --no-check")[0] == 0
    )
    artefact, x = lyc_fx.bind(folder / "styles.pt2"), torch.randn(2, 6)
    artefact.strengths = [[0.5, 0.0], [0.0, 1.0]]
    y = artefact(x)
    torch.testing.assert_close(y[0], wanted(folder, {"ink.safetensors": 0.5}, x)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(y[1], wanted(folder, {"oil.safetensors": 1.0}, x)[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("export none.pt2 ink.safetensors -o x.pt2", "none.pt2: there is no such file"),
        ("export model.pt2 ink.safetensors -o model.pt2 --force", "model.pt2: is an input"),
        ("export model.pt2 ink.safetensors -o x.tflite", "writes .safetensors, .aoti.pt2, .pt2, .onnx, not .tflite"),
        ("export model.pt2 none.safetensors -o x.pt2", "none.safetensors"),
        ("export model.pt2 ink.safetensors -o x.pt2 --rank 8", "only --kind slots"),
        ("pack ink.safetensors --for model.pt2 -o x.safetensors", "model.pt2: holds no description by lyc-fx"),
        ("pack ink.safetensors --for none.pt2 -o x.safetensors", "none.pt2: no such file"),
    ],
)  # fmt: skip
def test_mistakes(command: str, message: str, folder: Path) -> None:
    before = sorted(folder.iterdir())
    code, said = run(folder, command)
    assert code != 0 and message in said, said
    assert sorted(folder.iterdir()) == before


def test_an_existing_file_is_kept_without_force(folder: Path) -> None:
    (folder / "old.pt2").write_bytes(b"mine")
    code, said = run(folder, "export model.pt2 ink.safetensors -o old.pt2")
    assert code == 1 and "exists; --force replaces it" in said
    assert (folder / "old.pt2").read_bytes() == b"mine"
    assert run(folder, "export model.pt2 ink.safetensors -o old.pt2 --force --no-check --quiet") == (0, "")
