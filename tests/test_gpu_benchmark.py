"""`benchmarks/gpu.py`, whose rows are for a GPU, runs; here a little of each on a CPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *options],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_little_of_it_all_on_a_cpu(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run("--device", "cpu", "--small", "--out", str(page))
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert text.startswith("# On CPU\n")
    assert [line.count("| right |") for line in text.splitlines()].count(1) == 3
    assert "WRONG" not in text and "Not all rows" not in text
    tables = text.split("\n## ")[1:]
    assert len(tables) == 5 and all(table.count("\n| ") >= 3 for table in tables)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    done = run()
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "there is no CUDA device here: --device cpu --small runs a little of it all\n"
