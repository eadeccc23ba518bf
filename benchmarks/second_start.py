"""Seconds from the start of a process to the first result of an adapted, compiled model: a first process, and a second.

    make bench-start [ARGS="--width 256 --blocks 12 --rounds 3 --forms program attached"]

A transformer of equal blocks with a LoRA on every layer, for 16 tokens. Each cell is a process of its own, which begins
with empty caches, or with what a first process left; the second has other weights and adapters. `program` is captured,
spliced, lowered, staged and compiled whole; `attached` has its equal blocks compiled once; `attached, whole` goes
through plain `torch.compile`, with torch's own cache folder, or with only its artefacts
(`torch.compiler.save_cache_artifacts`) carried over; `base` is the model alone, likewise. Times are the medians of the
rounds, which take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from starting.stages import FORMS

from lyc_fx.binding.report import table

ROOT = Path(__file__).parent.parent
Times = dict[str, float]
MORE = {"TORCHINDUCTOR_VEC_ISA_OK": "1"}
"""Torch is told that the compiler knows the processor's vector instructions, and does not try them out"""


def started(form: str, keeps: str, folder: Path, caches: Path, sizes: list[str], more: dict[str, str]) -> Times:
    """One process: seconds for each stage, by name, with the whole as `total`."""
    caches.mkdir(exist_ok=True)
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(caches), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'benchmarks'}"}
    command = [sys.executable, "-m", "starting.stages", form, keeps, str(folder), *sizes]
    done = subprocess.run(command, env=os.environ | settings | more, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def pairs(form: str, keeps: str, sizes: list[str], more: dict[str, str]) -> Iterator[tuple[str, Times]]:
    """A first process and a second."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        yield "first", started(form, keeps, path, path / "first", ["0", *sizes], more)
        same = path / "first" if keeps == "folder" else path / "second"
        yield "second", started(form, keeps, path, same, ["1", *sizes], more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    args = parser.parse_args()
    sizes = [str(args.width), str(args.blocks)]
    cases = [(form, keeps, more) for form in args.forms for keeps, more in ways(form)]
    found: dict[tuple[int, str], list[Times]] = {}
    for _ in range(args.rounds):
        for number, (form, keeps, more) in enumerate(cases):
            for which, times in pairs(form, keeps, sizes, more):
                found.setdefault((number, which), []).append(times)
                print(form, keeps, which, times, file=sys.stderr, flush=True)
    rows = []
    for number, (form, keeps, more) in enumerate(cases):
        first, second = (
            {stage: median(each[stage] for each in found[number, which]) for stage in found[number, which][0]}
            for which in ("first", "second")
        )
        rows.append(
            {"form": form, "kept": keeps + (", ISA known" if more else ""), "first": f"{first['total']:.1f}"}
            | {"second": f"{second['total']:.1f}"}
            | {f"second: {stage}": f"{seconds:.1f}" for stage, seconds in second.items() if stage != "total"}
        )
    print("\n".join(table(rows)))


def ways(form: str) -> Iterator[tuple[str, dict[str, str]]]:
    """What is kept between processes, with further settings."""
    if form in ("program", "attached"):
        yield "file", {}
        yield "file", MORE
    else:
        yield "folder", {}
        yield "artefacts", {}


if __name__ == "__main__":
    main()
