"""Folding an adapter into a checkpoint of SDXL's UNet: a plain copy, lyc-fx, LyCORIS and PEFT side by side.

    make bench-fold [ARGS="--small --rounds 1 --adapters LoRA LoKr"]

It makes a random bfloat16 checkpoint and adapters saved by LyCORIS in a temporary folder, which it removes. Each
contestant runs in a process of its own; its wall time ends when its output is on disk (fsync), and its inputs are in
the page cache before. Medians over the rounds. Memory is RssAnon + RssShmem of the process and its children, looked
at every 20 ms: pages that only mirror a file are left out. The outputs are compared with the formulas in float64.

LyCORIS and PEFT are timed, not followed: LyCORIS 4.1.3 applies alpha twice when it merges LoHa and LoKr. Linux only.
"""

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from folding import base, tables
from folding.adapters import KINDS, TITLES
from folding.contest import OURS, Contest, Results

from lyc_fx.binding.report import table

_BUILD = Path(__file__).resolve().parents[1] / "build"


def main() -> None:
    chosen = _arguments()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: chosen.cores])  # the contestants inherit it
    size = "small" if chosen.small else "full"
    with _workspace(chosen.work, size, chosen.keep) as folder:
        contest = Contest(folder, size, chosen.adapters, chosen.rounds, chosen.peer_rounds, chosen.rows)
        results, elsewhere = _hold(contest), {}
        if not chosen.small:  # as large layers, and fewer: is the memory that of a layer, or of the file?
            contest.base.unlink()
            elsewhere = _hold(Contest(folder, "short", chosen.adapters[:1], 1, 0, chosen.rows))
    _report(chosen, size, results, elsewhere)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="the same layers a fifth as wide: a quick look")
    parser.add_argument("--adapters", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3, help="of cp and lyc-fx (default: 3)")
    parser.add_argument("--peer-rounds", type=int, default=1, help="of LyCORIS and PEFT; 0: without (default: 1)")
    parser.add_argument("--rows", type=int, default=16, help="rows of each layer to compare (default: 16)")
    parser.add_argument("--cores", type=int, default=2, help="that all contestants may use (default: 2)")
    parser.add_argument("--work", type=Path, help="folder on the disk to measure (default: the system's temporary)")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and adapters there")
    parser.add_argument("--json", type=Path, default=_BUILD / "bench-fold.json", help="every run")
    parser.add_argument("--plot", type=Path, default=_BUILD / "bench-fold.svg")
    return parser.parse_args()


@contextmanager
def _workspace(work: Path | None, size: str, keep: bool):
    folder = Path(tempfile.mkdtemp(prefix="bench-fold-", dir=work))
    try:
        needed, free = 2 * base.total(size) + (3 << 30), shutil.disk_usage(folder).free
        if free < needed:
            sys.exit(
                f"{folder} has {free / 1e9:.1f} GB free; this needs {needed / 1e9:.1f} GB: name another with --work"
            )
        _say(f"in {folder}, which has {free / 1e9:.1f} GB free; at most {needed / 1e9:.1f} GB are needed")
        yield folder
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _hold(contest: Contest) -> Results:
    base.write(contest.base, contest.size)
    _say(f"{contest.size} checkpoint: {contest.base.stat().st_size / 1e9:.2f} GB")
    return contest.hold(contest.prepare(_say), _say)


def _report(chosen: argparse.Namespace, size: str, results: Results, elsewhere: Results) -> None:
    packages = ("torch", "safetensors", "lycoris-lora", "peft", "diffusers")
    setting = {
        "checkpoint": f"SDXL UNet, {size}, {base.total(size) / 1e9:.2f} GB in bfloat16",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "rounds": chosen.rounds,
        "peer rounds": chosen.peer_rounds,
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": {name: version(name) for name in packages},
    }
    print("\n".join(f"{name}: {value}" for name, value in setting.items()))
    print("adapters: " + "; ".join(TITLES[kind] for kind in results) + "\n")
    print("\n".join(table(tables.rows(results))))
    print(tables.copies(results))
    print(tables.sampled(results))
    if size == "small":
        print("the limits on seconds are meant for the full size: no verdict on them here")
    print("\n" + "\n".join(table(tables.verdicts(results, timed=size == "full"))) + "\n")
    for kind, who in elsewhere.items():
        ours, there = results[kind][OURS].anonymous / 2**20, who[OURS].anonymous / 2**20
        smaller = base.total("short") / 1e9
        print(f"anonymous memory with {kind}: {ours:.0f} MiB; {there:.0f} MiB with as large layers, {smaller:.2f} GB\n")
    facts = {"setting": setting, "results": tables.data(results), "fewer layers": tables.data(elsewhere)}
    for path, text in (
        (chosen.json, json.dumps(facts, indent=1)),
        (chosen.plot, tables.plot(f"Folding into {setting['checkpoint']}: wall seconds", results)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"wrote {path}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
