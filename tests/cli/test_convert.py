"""`lyc-fx convert`: there and back on the command line, and what it says when it cannot."""

import json
from pathlib import Path

import pytest
import torch
from conversions import adapters_for, made
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lyc_fx
from lyc_fx.formats.lycoris import Lycoris

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """A folder with a model and an adapter for all its layers."""
    model = made("flux", torch.float32)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    tensors = dict(Lycoris().write(adapters_for(model)).tensors)
    save_file(tensors, tmp_path / "a.safetensors", {"ss_network_dim": "2"})
    return tmp_path


def test_there_and_back(flux: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    model = flux / "model.safetensors"
    said = lyc("convert", flux / "a.safetensors", "--to", "kohya", "--like", model, "-o", flux / "kohya.safetensors")
    assert (said.code, said.err) == (0, "")
    assert said.out == f"23 modules: 19 as they were, 4 fused\nwrote {flux / 'kohya.safetensors'}\n"
    with safe_open(flux / "kohya.safetensors", "pt") as file:
        assert file.metadata() == {"ss_network_dim": "2"}
    assert lyc("convert", flux / "kohya.safetensors", "--to", "peft", "--like", model, "-o", flux / "peft").code == 0
    for name in ("a.safetensors", "kohya.safetensors", "peft"):
        assert lyc("fold", model, f"{flux / name}@0.7", "-o", flux / f"out.{name.split('.')[0]}.safetensors").code == 0
    wanted, base = load_file(flux / "out.a.safetensors"), load_file(model)
    for other in ("out.kohya.safetensors", "out.peft.safetensors"):
        for name, value in load_file(flux / other).items():
            assert (value - wanted[name]).norm() <= 1e-6 * (wanted[name] - base[name]).norm(), (other, name)


def test_what_was_done_as_json(flux: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    options = ["--to", "diffusers", "--like", flux / "model.safetensors", "-o", flux / "d.safetensors", "--json"]
    data = json.loads(lyc("convert", flux / "a.safetensors", *options).out)
    assert data["convention"] == "diffusers" and len(data["modules"]) == 30
    assert data["modules"][0] | {"rank": 2, "how": [], "error": None, "algorithm": "locon"} == data["modules"][0]


def test_the_error_of_an_approximation_is_printed(flux: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    save_file({"x_embedder.diff": torch.randn(12, 4)}, flux / "full.safetensors")
    command = ["convert", flux / "full.safetensors", "--to", "diffusers", "-o", flux / "d.safetensors"]
    command += ["--like", flux / "model.safetensors"]
    said = lyc(*command)
    assert (said.code, said.out) == (1, "")
    assert "x_embedder: full has no exact low-rank form" in said.err and "--svd RANK" in said.err
    assert not (flux / "d.safetensors").exists()
    said = lyc(*command, "--svd", "2")
    assert said.code == 0
    [adapter] = [entry.adapter for entry in lyc_fx.load(flux / "d.safetensors").entries]
    diff = load_file(flux / "full.safetensors")["x_embedder.diff"].double()
    error = float((adapter.delta((12, 4)).double() - diff).norm() / diff.norm())  # type: ignore[attr-defined]
    assert f"relative error {error:.2e}" in said.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "kohya", "--like", "nope"], "nope: there is no such file"),
        (["--to", "diffusers"], "the model's own names and shapes cannot be derived from these"),
        (["--to", "kohya", "--like", "a.safetensors"], "30 adapters cannot be converted"),
        (["--to", "lycoris", "-o", "a.safetensors"], "is an input as well as the output"),
        (["--to", "peft", "--like", "model.safetensors", "-o", "."], "contains a.safetensors, which is an input"),
    ],
    ids=["no model", "no names", "another model", "onto itself", "a directory that is there"],
)
def test_refusals(flux: Path, lyc, options: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(flux)
    before = {path.name: path.read_bytes() for path in flux.iterdir()}
    said = lyc("convert", "a.safetensors", *(["-o", "out.safetensors"] if "-o" not in options else []), *options)
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: ") and message in said.err
    assert {path.name: path.read_bytes() for path in flux.iterdir()} == before
