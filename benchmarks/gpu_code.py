"""The code that inductor writes for a GPU (sm_90), on a machine that has none: kernels, GEMMs and intermediates.

    make gpu-code [ARGS="--layers conv --algorithms LoCon DoRA --forms spliced lowered --calls"]

Two adapted layers in bfloat16 go through `torch.compile` as fake CUDA tensors on a stand-in for the device. Nothing is
run; every fused kernel is compiled to a cubin by triton. A row says what a program has more than the base's: launches
of fused kernels, GEMMs (cuBLAS's, and cuDNN's convolutions), other operators called, bytes allocated (a buffer that is
used again counts once) and bytes written by kernels and GEMMs, in place too. These do not vary from run to run.
"""

import argparse
import json
import warnings
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from inductor.counting import Row

_TORCH = "2.13"


def main() -> None:
    if find_spec("triton") is None:
        raise SystemExit("triton is not installed: pip install 'lyc-fx[gpu-code]', or make gpu-code")
    warnings.simplefilter("ignore")
    try:
        _print_figures()
    except Exception as error:
        if torch.__version__.startswith(f"{_TORCH}."):
            raise
        first = str(error).partition("\n")[0]
        raise SystemExit(
            f"This needs torch {_TORCH}, whose private names it uses to stand in for a device and to stop inductor "
            f"before it loads a kernel. With torch {torch.__version__}: {type(error).__name__}: {first}"
        ) from error


def _print_figures() -> None:
    from inductor import cases, counting

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=cases.LAYERS, default=list(cases.LAYERS))
    parser.add_argument("--algorithms", nargs="+", choices=cases.ALGORITHMS, default=list(cases.ALGORITHMS))
    parser.add_argument("--forms", nargs="+", choices=cases.FORMS, default=[f for f in cases.FORMS if f != "spliced"])
    parser.add_argument("--strength", type=float, default=0.7)
    parser.add_argument("--calls", action="store_true", help="name each program's kernels, GEMMs and other calls")
    parser.add_argument("--code", type=Path, help="a folder for the code that inductor writes")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    made = list(counting.rows(options.layers, options.algorithms, options.forms, options.strength, options.code))
    if options.json:
        print(json.dumps([asdict(row) for row in made]))
        return
    print("\n".join(_table([_cells(row) for row in made])))
    if options.calls:
        print("\n".join(f"{_title(row)}: {_counted(row.calls)}" for row in made))
    kernels = sum(len(row.cubins) for row in made)
    print(f"torch {torch.__version__}; all {kernels} kernels of {len(made)} programs were compiled to cubins")


def _table(rows: list[dict[str, str]]) -> list[str]:
    """As Markdown, for docs/benchmarks.md."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _title(row: "Row") -> str:
    return ", ".join(filter(None, (row.layers, row.algorithm, row.form)))


def _cells(row: "Row") -> dict[str, str]:
    sign = "" if row.algorithm == "base" else "+"
    figures = {name: f"{count:{sign},}" for name, count in row.figures.items()}
    return {"layers": row.layers, "algorithm": row.algorithm, "form": row.form} | figures


def _counted(calls: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in calls.items())


if __name__ == "__main__":
    main()
