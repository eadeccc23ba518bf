"""Adapters of mixed ranks that take turns in a compiled UNet, with other strengths at each step: recompiles, seconds.

    make bench-swaps [ARGS="--channels 64 128 256 --adapters 20 --steps 50 --rank 16 --backend inductor --device cpu"]

A UNet of diffusers has a LoRA of every rank up to `--rank`, one after another, on all its Linear and Conv2d layers, and
each runs for some steps with another strength at each. The UNet is compiled whole once (`fullgraph=True`: a graph break
is an error), torch is told that a recompile is an error (`error_on_recompile`), and the number of graphs is counted.
`set` is a swap, `set_strengths` a step's change; the floor is the bytes that a swap must at least read and write (the
adapter's factors, and what the layers hold in their place) over the bandwidth of a large copy, measured beside it.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from swapping.unet import adapters, inputs, unet
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lyc_fx
from lyc_fx.attaching.bank import Bank
from lyc_fx.binding.report import table


def seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bandwidth(device: torch.device, size: int = 1 << 26) -> float:
    """Bytes per second, read and written, of the copy of a large tensor."""
    source, target = torch.ones(size, device=device), torch.empty(size, device=device)
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(5))


def held(model: nn.Module) -> int:
    """Bytes of all that adapted layers hold beside their weights."""
    return sum(tensor.nbytes for bank in model.modules() if isinstance(bank, Bank) for tensor in bank.buffers())


def size_of(made: lyc_fx.AdapterSet) -> int:
    return sum(factor.nbytes for entry in made.entries for factor in entry.adapter.factors().values())


@torch.no_grad()
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
    given = inputs(device)
    # every rank up to the room's, in an order that goes up and down
    ranks = [1 + 7 * number % args.rank for number in range(args.adapters)]
    sets = [adapters(model, rank, seed) for seed, rank in enumerate(ranks)]
    attached = lyc_fx.attach(model, sets[0], 0.0, rank=args.rank)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=args.backend)
    first = seconds(lambda: compiled(**given), device)
    graphs = counters["stats"]["unique_graphs"]
    rows: list[dict[str, object]] = []
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, (rank, made) in enumerate(zip(ranks, sets, strict=True)):
            swap = seconds(lambda: attached.set(made, 0.3 + number / 10), device)  # noqa: B023  # called at once
            floor = (size_of(made) + held(model)) / bandwidth(device)
            changes, calls, before = [], [], None
            for step in range(args.steps):
                strength = 1.1 - 2 * step / args.steps
                changes.append(seconds(lambda: attached.set_strengths(strength), device))  # noqa: B023
                calls.append(seconds(lambda: compiled(**given), device))
                before = differs(compiled(**given).sample, before) if step in (0, 1) else before
            rows.append(
                {"adapter": number, "rank": rank, "set, ms": f"{1e3 * swap:.1f}", "floor, ms": f"{1e3 * floor:.1f}"}
                | {"ratio": f"{swap / floor:.1f}", "set_strengths, ms": f"{1e3 * median(changes):.1f}"}
                | {"step, ms": f"{1e3 * median(calls):.1f}", "recompiles": counters["stats"]["unique_graphs"] - graphs}
            )
            print(rows[-1], flush=True)
    layers = sum(isinstance(module, Bank) for module in model.modules())
    print(f"{device}, torch {torch.__version__}: {layers} layers, {args.backend}, first call {first:.0f} s")
    recompiles, breaks = counters["stats"]["unique_graphs"] - graphs, len(counters["graph_break"])
    print(f"graphs {graphs}, recompiles {recompiles}, breaks {breaks}")
    print("\n".join(table(rows)))


def differs(found: Tensor, before: Tensor | None) -> Tensor:
    """Another strength has another result; returns it."""
    assert found.isfinite().all()
    assert before is None or not torch.equal(found, before)
    return found


if __name__ == "__main__":
    main()
