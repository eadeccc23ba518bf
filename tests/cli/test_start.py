"""Starting the command line, its arguments, and its progress display."""

import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import pytest
import typer

import lyc_fx
from lyc_fx.cli import progress
from lyc_fx.cli.arguments import Wanted


def test_help_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, lyc_fx.cli as c; sys.argv[1:] = ['--help']\ntry: c.main()\nfinally: print('torch' in sys.modules)"
    )
    started = perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert perf_counter() - started < 2  # 0.15 s on an idle machine; torch alone takes more than a second
    assert result.stdout.splitlines()[-1] == "False"
    assert {"fold", "inspect", "demo"} <= set(result.stdout.split())


def test_version_and_python_m() -> None:
    result = subprocess.run([sys.executable, "-m", "lyc_fx", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"lyc-fx {lyc_fx.__version__}\n"


def test_public_names_are_functions() -> None:
    code = "import lyc_fx\nfor n in lyc_fx.__all__: print(type(getattr(lyc_fx, n)).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) == {"function", "type"}


@pytest.mark.parametrize(
    ("text", "path", "strength"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors@0.5", "a.safetensors", 0.5),
        ("a.safetensors@-0.5", "a.safetensors", -0.5),
        ("a.safetensors@1e-3", "a.safetensors", 1e-3),
        ("me@home/a.safetensors", "me@home/a.safetensors", 1.0),
        ("me@home/a@b.safetensors@2", "me@home/a@b.safetensors", 2.0),
        ("a@1@2", "a@1", 2.0),
    ],
)
def test_strengths(text: str, path: str, strength: float) -> None:
    assert Wanted.parse(text) == Wanted(Path(path), strength)


def test_a_file_of_that_very_name_wins(tmp_path: Path) -> None:
    odd = tmp_path / "style@2"
    odd.touch()
    assert Wanted.parse(str(odd)) == Wanted(odd)
    assert Wanted.parse(f"{odd}@3") == Wanted(odd, 3.0)
    with pytest.raises(typer.BadParameter, match="'three' is not a number"):
        Wanted.parse(f"{odd}@three")


def test_progress_on_a_terminal_after_a_delay(files, lyc, monkeypatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setattr(progress, "_DELAY", 0.0)
    before = lyc("fold", files.base, files.locon, "-o", files.out)
    assert re.search(r"loading the adapters|folding", before.err)
    assert lyc("fold", files.base, files.locon, "-o", files.out, "--quiet", "--force").err == ""
    monkeypatch.setattr(progress, "_DELAY", 60.0)
    assert lyc("fold", files.base, files.locon, "-o", files.out, "--force").err == ""
