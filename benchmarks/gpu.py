"""What can only be seen on a GPU, in one run of at most some minutes, written as a page.

    make bench-gpu [ARGS="--out docs/gpu.md"]        python benchmarks/gpu.py --device cpu --small

Every family on every road against the closed formula; swaps in a compiled UNet and in compiled programs, where a
recompile is an error; compiled chains over the folded program in bfloat16; merges over the copy of a large tensor.
Ends with 1 if a result is wrong, and with 2 where there is no CUDA device. After `--minutes` no further row is begun,
and the page says what is missing.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
Row = dict[str, object]


def sections() -> Iterator[tuple[str, Callable[..., Iterator[Row]]]]:
    """Titles, and what yields the rows below them."""
    from on_gpu import calls, correctness, merges, swaps

    yield "Every family on every road: the largest difference from the closed formula, float64", correctness.rows
    yield "Adapters that take turns in a compiled UNet", swaps.rows
    yield "Adapters exchanged in a compiled program", swaps.exchange_rows
    yield "Compiled chains over the folded program, bfloat16", calls.rows
    yield "Merges, in bytes of weights read and written", merges.rows


def markdown(rows: list[Row]) -> list[str]:
    columns = list(rows[0])
    lines = [[str(row.get(column, "")) for column in columns] for row in rows]
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines)]


def page(device: torch.device, *, small: bool, minutes: float) -> Iterator[str]:
    """The lines of the page, each as soon as it is known."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    yield from (f"# On {name}", "", f"torch {torch.__version__}, `make bench-gpu`", "")
    ends = time.monotonic() + 60 * minutes
    for title, rows in sections():
        found: list[Row] = []
        late = time.monotonic() > ends
        for row in () if late else rows(device, small=small):
            found.append(row)
            print(row, file=sys.stderr, flush=True)
            if late := time.monotonic() > ends:
                break
        missing = ["", f"Not all rows were begun within {minutes:g} minutes."] if late else []
        yield from (f"## {title}", "", *(markdown(found) if found else []), *missing, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a little of each, in a minute on a CPU")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--out", type=Path, help="a file for the page")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here: --device cpu --small runs a little of it all", file=sys.stderr)
        raise SystemExit(2)
    warnings.simplefilter("ignore")
    lines = []
    for line in page(device, small=args.small, minutes=args.minutes):
        lines.append(line)
        print(line, flush=True)
    if args.out is not None:
        args.out.write_text("\n".join(lines))
    raise SystemExit(any("WRONG" in line for line in lines))


if __name__ == "__main__":
    main()
