"""A call of an adapted model, folded and unfolded, by lyc-fx, PEFT and LyCORIS, over the same call folded.

    python benchmarks/forward.py [--net linear conv] [--width 1024] [--sizes 1 16 256] [--algorithms "LoRA 16" …]
                                 [--eager] [--rounds 20]

Two blocks with an adapter on every layer: of a transformer (`linear`; sizes are tokens), or of a UNet's convolutions
(`conv`; sizes are the height and width of an image). All forms of one row take turns; a cell is the median of the
rounds' ratios to the folded program, with the quartiles. `base` is the model without adapter; `folded, frozen` has its
weights packed by inductor's freezing; `lowered` has chains on activations; `staged` has also computed beforehand what
depends on no input; `planned` has a chain or a resident merged weight for each layer, as `lyc_fx.plan` chooses;
`attached` is the model itself with staged chains beside its layers. Adapters of all but the folded can be exchanged.
"""

import argparse
import time
import warnings
from statistics import median, quantiles

import torch
from forwarding.forms import Run, compiled, forms
from forwarding.nets import ALGORITHMS, inputs, net
from torch import Tensor

from lyc_fx.binding.report import table


def timed(run: Run, x: Tensor, repeats: int) -> float:
    started = time.perf_counter()
    for _ in range(repeats):
        run(x)
    return (time.perf_counter() - started) / repeats


def runs(kind: str, width: int, size: int, algorithm: str, *, eager: bool) -> tuple[dict[str, Run], Tensor]:
    """Each form as what is called, after a first call."""
    model, x, found = net(kind, width), inputs(kind, width, size), dict[str, Run]()
    torch._dynamo.reset()
    for name, module in forms(model, algorithm, x):
        if eager:
            found[name] = module
            continue
        found[name] = compiled(module)
        found[name](x)
        if name == "folded":
            torch._dynamo.reset()
            found["folded, frozen"] = compiled(module, freezing=True)
            found["folded, frozen"](x)
    if found:
        found["base"] = model if eager else compiled(model)
        for run in found.values():
            run(x)
    return found, x


def measured(found: dict[str, Run], x: Tensor, rounds: int) -> dict[str, str]:
    """Ratios to the folded program: the median, and the first and third quartile."""
    repeats = max(1, int(0.02 / timed(found["folded"], x, 3)))
    times = [{name: timed(run, x, repeats) for name, run in found.items()} for _ in range(rounds)]
    cells = {"folded, ms": f"{1e3 * median(each['folded'] for each in times):.2f}"}
    for name in found:
        if name != "folded":
            ratios = [each[name] / each["folded"] for each in times]
            low, _, high = quantiles(ratios, n=4)
            cells[name] = f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"
    return cells


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="+", default=["linear"], choices=["linear", "conv"])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--algorithms", nargs="+", default=list(ALGORITHMS), choices=ALGORITHMS)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    rows: list[dict[str, object]] = []
    for kind in args.net:
        for size in args.sizes:
            for algorithm in args.algorithms:
                found, x = runs(kind, args.width, size, algorithm, eager=args.eager)
                if found:
                    rows.append({"net": kind, "size": size, "algorithm": algorithm} | measured(found, x, args.rounds))
                    print(rows[-1], flush=True)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    rows = [{column: row.get(column, "-") for column in columns} for row in rows]
    how = "eager" if args.eager else "compiled"
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, width {args.width}, {how}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
