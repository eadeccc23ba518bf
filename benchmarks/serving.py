"""A batch whose samples have adapters of their own (`lyc_fx.serve`), over the same batch without adapters.

    python benchmarks/serving.py [--samples 16] [--tokens 256] [--width 1024] [--rounds 10] [--eager]

Two blocks of a transformer, an adapter on every layer. `serve` holds as many sets as there are samples, and each sample
uses another one; `one by one` merges each set into the model (`lyc_fx.live`) and calls it with its sample, the merges
not counted. All forms of a row take turns; a cell is the median of the rounds' ratios to the base, with the quartiles.
"""

import argparse
import copy
import time
import warnings
from collections.abc import Callable
from statistics import median, quantiles

import torch
from forwarding.nets import adapters, inputs, net
from torch import Tensor, nn

import lyc_fx
from lyc_fx.binding.report import table

MIXES = {
    "LoRA 16": ("LoRA 16",),
    "LoRA 16, LoKr 8": ("LoRA 16", "LoKr 8, rank 16"),
    "LoRA 16, LoKr 8, DoRA 16, Diag-OFT 32": ("LoRA 16", "LoKr 8, rank 16", "DoRA 16", "Diag-OFT 32"),
}
Call = Callable[[Tensor], Tensor]


def served(model: nn.Module, mix: tuple[str, ...], samples: int) -> nn.Module:
    """A copy of the model in which the n-th sample uses the n-th set, whose algorithms alternate."""
    own, sets = copy.deepcopy(model), {}
    for index in range(samples):
        torch.manual_seed(index)
        made = adapters(own, mix[index % len(mix)])
        assert made is not None
        sets[str(index)] = [(made, 0.7)]
    lyc_fx.serve(own, sets).choose(sets)
    return own


def one_by_one(run: Call, samples: int) -> Call:
    return lambda x: torch.cat([run(x[i : i + 1]) for i in range(samples)])


def seconds(run: Call, x: Tensor) -> float:
    started = time.perf_counter()
    run(x)
    return time.perf_counter() - started


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    model = net("linear", args.width)
    x = inputs("linear", args.width, args.tokens).expand(args.samples, -1, -1).contiguous()
    rows: list[dict[str, object]] = []
    for name, mix in MIXES.items():
        torch._dynamo.reset()
        finish: Callable[[nn.Module], Call] = (lambda m: m) if args.eager else torch.compile
        runs = {"base": finish(model), "serve": finish(served(model, mix, args.samples))}
        alone = finish(copy.deepcopy(model))
        runs["one by one"] = one_by_one(alone, args.samples)
        for run in runs.values():
            run(x)
        times = [{each: seconds(run, x) for each, run in runs.items()} for _ in range(args.rounds)]
        cells = {"base, ms": f"{1e3 * median(each['base'] for each in times):.0f}"}
        for form in ("serve", "one by one"):
            ratios = [each[form] / each["base"] for each in times]
            low, _, high = quantiles(ratios, n=4)
            cells[form] = f"{median(ratios):.2f} ({low:.2f} to {high:.2f})"
        rows.append({"sets": f"{args.samples} of {name}"} | cells)
        print(rows[-1], flush=True)
    how = "eager" if args.eager else "compiled"
    print(f"CPU, {torch.get_num_threads()} threads, torch {torch.__version__}, width {args.width}, {how}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
