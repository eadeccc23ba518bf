"""MiniLM exported with its three trained adapters: what it costs to have the adapter, or the strengths, as an input.

    make bench-export [ARGS="--runtimes onnx pt2 --batch 8 --tokens 64 --rounds 30"]

all-MiniLM-L6-v2 (the extra `demo`) is exported folded, with slots of rank 16, and with styles (LoCon, LoHa and LoKr
inside, another mix for each sample), and each file is called through its own runtime, in turns; the ratio is that of
the medians to the folded file of the same runtime. Before that, one file with slots takes all three adapters at several
strengths, and is compared with a merge.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

import lyc_fx
from lyc_fx.binding.report import table
from lyc_fx.cli.demo.data import Data, MiniLM

SUFFIX = {"pt2": ".pt2", "onnx": ".onnx", "aoti": ".aoti.pt2"}
NAMES = ("locon", "loha", "lokr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", choices=SUFFIX, default=list(SUFFIX))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--rank", type=int, default=16)
    args = parser.parse_args()
    model = MiniLM.load().model
    inputs = {
        "input_ids": torch.randint(1000, 20000, (args.batch, args.tokens)),
        "attention_mask": torch.ones(args.batch, args.tokens, dtype=torch.long),
    }
    sizes = dict.fromkeys(inputs, "batch<=64 tokens<=512")
    program = lyc_fx.capture(model, (), inputs, sizes)
    files = {name: str(Data.find(None, name).adapter) for name in NAMES}
    programs = {
        "folded": lyc_fx.fold(lyc_fx.splice(program, files["locon"])),
        "slots": lyc_fx.slots(lyc_fx.splice(program, files["locon"], rank=args.rank)),
        "styles": lyc_fx.styles(lyc_fx.splice(program, list(files.values()))),
    }
    with tempfile.TemporaryDirectory() as folder:
        rows, calls = [], {}
        for runtime in args.runtimes:
            for kind, made in programs.items():
                path, started = Path(folder) / f"{kind}{SUFFIX[runtime]}", time.perf_counter()
                lyc_fx.export(made, path)
                row = {"runtime": runtime, "kind": kind, "MB": f"{size(path) / 1e6:.0f}"}
                rows.append(row | {"export": f"{time.perf_counter() - started:.0f} s"})
                calls[runtime, kind] = called(lyc_fx.bind(path), kind, files, inputs)
            if runtime != "aoti":
                print(
                    f"{runtime}, slots:", errors(lyc_fx.bind(Path(folder) / f"slots{SUFFIX[runtime]}"), files, inputs)
                )
        seconds = in_turns(calls, args.rounds)
    for row in rows:
        runtime, kind = row["runtime"], row["kind"]
        took = seconds[runtime, kind]
        row |= {"ms": f"{1e3 * took:.1f}", "÷ folded": f"{took / seconds[runtime, 'folded']:.2f}"}
    print(f"{args.batch} × {args.tokens} tokens, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print("\n".join(table(rows)))


def size(path: Path) -> int:
    return sum(each.stat().st_size for each in path.parent.glob(f"{path.name}*"))


def called(artefact: lyc_fx.Artefact, kind: str, files: dict[str, str], inputs: dict[str, Any]) -> Callable[[], Any]:
    if kind == "slots":
        artefact.set(files["locon"])
    if kind == "styles":
        batch = len(inputs["input_ids"])
        artefact.strengths = torch.rand(batch, len(files), generator=torch.Generator().manual_seed(0))
    return lambda: artefact(**inputs)


def in_turns(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    times: dict[Any, list[float]] = {key: [] for key in calls}
    for turn in range(rounds + 2):
        for key, call in calls.items():
            started = time.perf_counter()
            call()
            if turn > 1:
                times[key].append(time.perf_counter() - started)
    return {key: median(each) for key, each in times.items()}


def errors(slots: lyc_fx.Artefact, files: dict[str, str], inputs: dict[str, Any]) -> str:
    """The largest difference from a merge, relative to the largest value, of each adapter at three strengths."""
    found = []
    for name, file in files.items():
        for strength in (0.0, 0.5, 1.0):
            model = MiniLM.load().model
            if strength:
                lyc_fx.merge(model, file, strength)
            slots.set(file, strength)
            with torch.no_grad():
                wanted = tree_leaves(model(**inputs))[0]
            got = tree_leaves(slots(**inputs))[0]
            found.append(f"{name} {strength} {float((got - wanted).abs().max() / wanted.abs().max()):.1e}")
    return ", ".join(found)


if __name__ == "__main__":
    main()
