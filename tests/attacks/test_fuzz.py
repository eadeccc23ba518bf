"""Some thousand hostile files, as `benchmarks/fuzz.py` makes them; and that a fault would be seen."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hostile import kinds
from hostile.tries import NONE, Outcome, Tries

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured by /proc")
SCRIPT = Path(__file__).parent.parent.parent / "benchmarks" / "fuzz.py"


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


def test_only_our_own_errors_little_memory_and_no_code() -> None:
    result = fuzz("--tries", "1000", "--seed", "7", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["attack"]: row for row in json.loads(result.stdout)}
    assert rows["all"]["tries"] == 1000
    assert len(rows) == 20
    ends = ("used", "BadFile", "BadAdapter", "Unsupported")
    assert sum(rows["all"][end] for end in ends) == 1000
    assert rows["nothing spoilt"]["used"] > 0.8 * rows["nothing spoilt"]["tries"]
    assert all(rows["all"][end] for end in ends[:3])


class Planted:
    """A victim that does what no file may bring about."""

    def __init__(self, act: Callable[[Path], object]) -> None:
        self._act = act

    def as_adapter(self, _: object, path: Path) -> str:
        self._act(path)
        return "used"

    as_base = as_adapter


@pytest.fixture(scope="module")
def tries() -> Iterator[Tries]:
    with Tries.prepared(0) as made:
        yield made


def planted(tries: Tries, act: Callable[[Path], object]) -> Outcome:
    number = next(n for n in range(1000) if tries.run(n).attack == NONE)
    return replace(tries, victim=Planted(act)).run(number)  # type: ignore[arg-type]


def test_a_foreign_exception_is_a_fault(tries: Tries) -> None:
    assert planted(tries, lambda path: {}["x"]).fault.startswith("KeyError: 'x'")


def test_memory_is_a_fault(tries: Tries) -> None:
    assert planted(tries, lambda path: torch.ones(10**7)).fault.startswith("memory: ")


def test_code_that_was_run_is_a_fault(tries: Tries) -> None:
    marked = planted(tries, lambda path: os.mkdir(tries.folder / "try" / kinds.MARK))
    assert marked.fault.startswith("the file's code was run")


def test_the_same_number_is_the_same_try(tries: Tries) -> None:
    for number in range(50):
        first, second = tries.run(number), tries.run(number)
        assert (first.attack, first.end, first.size) == (second.attack, second.end, second.size)
