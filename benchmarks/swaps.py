"""Adapters of mixed ranks that take turns in a compiled UNet, with other strengths at each step: recompiles, seconds.

    make bench-swaps [ARGS="--channels 64 128 256 --adapters 20 --steps 50 --rank 16 --backend inductor --device cpu"]

A UNet of diffusers has a LoRA of every rank up to `--rank`, one after another, on all its Linear and Conv2d layers, and
each runs for some steps with another strength at each. The UNet is compiled whole once (`fullgraph=True`: a graph break
is an error), torch is told that a recompile is an error (`error_on_recompile`), and the number of graphs is counted.
`set` binds, pads and computes; `swap` puts in what was prepared before (the best over the steps, each after a call of
the model and another adapter's turn), with the same result bit by bit; `set_strengths` is a step's change. The floor is
the bytes that a swap must at least read and write (the adapter's factors, and what the layers hold in their place) over
the bandwidth of a large copy, measured beside it; the ratio is that of `swap`.
"""

import argparse

import torch
from swapping.turns import turns
from swapping.unet import adapters, inputs, unet
from torch._dynamo.utils import counters

from lyc_fx.binding.report import table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--adapters", type=int, default=20)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    device = torch.device(args.device)
    model = unet(args.channels).to(device)
    ranks = [1 + 7 * number % args.rank for number in range(args.adapters)]  # up and down
    sets = [(rank, adapters(model, rank, seed)) for seed, rank in enumerate(ranks)]
    rows = []
    for row in turns(model, inputs(device), sets, rank=args.rank, steps=args.steps, backend=args.backend):
        rows.append(row)
        print(row, flush=True)
    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    print(f"{device}, torch {torch.__version__}, {args.backend}: {len(sets[0][1].entries)} layers")
    print(f"graphs {graphs}, recompiles {rows[-1]['recompiles']}, breaks {breaks}")
    print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
