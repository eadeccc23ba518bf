"""Folds that are killed at random moments: the target holds its old bytes, or all of the new ones, and nothing else.

    python benchmarks/kill.py [--times 200] [--seed 0]

Each time a fold is started over an older target (a file, a new folder, or a resumed folder), and killed by SIGKILL,
SIGTERM or SIGINT after a random part of the time that it takes. Now and then two are started at once. Exit code 1
where a target is neither whole nor as before, or where anything but hidden remains of SIGKILL lies beside it.
"""

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file

_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_ROOT = Path(__file__).parent.parent


def prepared(folder: Path) -> None:
    """A base of one file and of four shards, some 150 MB, and an adapter for every layer."""
    layers = {f"l{i}.weight": torch.randn(1024, 2048).bfloat16() for i in range(36)}
    save_file(layers, folder / "base.safetensors")
    (folder / "model").mkdir()
    names = list(layers)
    for number in range(4):
        save_file({n: layers[n] for n in names[number::4]}, folder / "model" / f"model-{number}.safetensors")
    (folder / "model" / "config.json").write_text("{}")
    factors = {f"l{i}.lora_up.weight": torch.randn(1024, 64) for i in range(36)}
    factors |= {f"l{i}.lora_down.weight": torch.randn(64, 2048) for i in range(36)}
    save_file(factors, folder / "adapter.safetensors")


def started(folder: Path, base: str, out: str, *options: str) -> "subprocess.Popen[bytes]":
    """A fold in a process of its own."""
    command = [sys.executable, "-m", "lyc_fx", "fold", base, "adapter.safetensors", "-o", out, "--force", *options]
    environment = os.environ | {"PYTHONPATH": str(_ROOT)}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def digest(path: Path) -> str | None:
    """Of a file, or of all files of a folder; None where there is neither."""
    if not path.exists():
        return None
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    total = hashlib.sha256()
    for file in files:
        if file.is_file():
            total.update(f"{file.relative_to(path)}\\0".encode() + file.read_bytes())
    return total.hexdigest()


def visible(folder: Path) -> set[str]:
    """What lies in the folder, without hidden remains."""
    return {name for name in os.listdir(folder) if not name.startswith(".")}


def main() -> int:
    """Run all; the number of faults."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    draw, count = random.Random(options.seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepared(folder)
        wanted, seconds = {}, {}
        for base, out in (("base.safetensors", "file.safetensors"), ("model", "folder")):
            begin = time.perf_counter()
            if started(folder, base, out).wait():
                raise SystemExit(f"the fold of {base} fails")
            seconds[out], wanted[out] = time.perf_counter() - begin, digest(folder / out)
            remove(folder / out)
        (folder / "old").write_bytes(b"an older file")
        before = visible(folder)
        for _ in range(options.times):
            out = draw.choice(("file.safetensors", "folder"))
            more = ("--resume",) if out == "folder" and draw.random() < 0.5 else ()
            if out == "file.safetensors" and draw.random() < 0.5:
                (folder / "file.safetensors").write_bytes(b"an older file")
            old = digest(folder / out)
            base = "base.safetensors" if out == "file.safetensors" else "model"
            runs = [started(folder, base, out, *more) for _ in range(1 + (draw.random() < 0.2))]
            time.sleep(draw.uniform(0, 1.1) * seconds[out])
            number = draw.choice(_SIGNALS)
            for run in runs:
                run.send_signal(number)
            for run in runs:
                run.wait()
            found = digest(folder / out)
            state = "new" if found == wanted[out] else "old" if found == old else "torn"
            count[f"{number.name}: {state}"] += 1
            if state == "torn" or visible(folder) - {out} != before:
                count["faults"] += 1
                print(f"fault: {out} {more} {number.name}: {state}; {sorted(visible(folder) - before)}")
            remove(folder / out)
            if number is signal.SIGKILL and not more:
                for remains in folder.glob(".*.part"):
                    remove(remains)
            left = [each.name for each in folder.glob(".*") if not each.name.endswith(".resume")]
            if left:
                count["faults"] += 1
                print(f"fault: {number.name} leaves {left}")
                for each in left:
                    remove(folder / each)
    print(", ".join(f"{what} {times}" for what, times in sorted(count.items()) if what != "faults"))
    print(f"{options.times} kills, {count['faults']} faults")
    return count["faults"]


def remove(path: Path) -> None:
    """A file, or a folder with all that is in it."""
    if path.is_dir():
        for inside in sorted(path.rglob("*"), reverse=True):
            inside.rmdir() if inside.is_dir() else inside.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(bool(main()))
