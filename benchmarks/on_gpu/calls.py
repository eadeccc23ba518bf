"""Compiled chains in bfloat16 over the folded program, at several numbers of tokens."""

from collections.abc import Callable, Iterator
from statistics import median

import torch
from forwarding.nets import adapters, inputs, net
from swapping.clock import seconds

import lyc_fx

ALGORITHMS = ("LoRA 16", "LoHa 8", "LoKr 8, full", "LoKr 8, rank 16", "DoRA 16", "Diag-OFT 32", "BOFT 16", "GLoRA 16")
STRENGTH = 0.7


@torch.no_grad()
def rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """Two blocks of a transformer with an adapter on every layer, staged; the folded ones differ in values alone."""
    width, sizes = (64, (4,)) if small else (1024, (16, 256, 2048))
    backend, rounds = ("eager", 2) if small else ("inductor", 20)
    for size in sizes:
        model = net("linear", width).to(device, torch.bfloat16)
        x = inputs("linear", width, size).to(device, torch.bfloat16)
        program, folded = lyc_fx.capture(model, (x,)), None
        for algorithm in ALGORITHMS[:2] if small else ALGORITHMS:
            made = adapters(model, algorithm)
            assert made is not None
            spliced = lyc_fx.splice(program, made, STRENGTH)
            own = lyc_fx.fold(spliced, lossy=True)  # some are weak for bfloat16
            if folded is None:
                torch.compiler.reset()
                folded = torch.compile(own, fullgraph=True, dynamic=False, backend=backend)
            staged = lyc_fx.stage(lyc_fx.lower(spliced))
            chain = torch.compile(staged, fullgraph=True, dynamic=False, backend=backend)
            wanted = own(x).float()
            difference = ((chain(x).float() - wanted).norm() / wanted.norm()).item()
            effect = ((wanted - model(x).float()).norm() / wanted.norm()).item()
            chains = sum(step.fired for step in lyc_fx.history(staged) if step.name == "distribute")
            base, found = turns([lambda: folded(x), lambda: chain(x)], device, rounds)  # noqa: B023  # at once
            ratios = [a / b for a, b in zip(found, base, strict=True)]
            yield (
                {"tokens": size, "algorithm": algorithm, "chains": chains, "folded, µs": f"{1e6 * median(base):.0f}"}
                | {"chains, µs": f"{1e6 * median(found):.0f}", "ratio": f"{median(ratios):.2f}"}
                | {"effect of the adapter": f"{effect:.0e}", "difference from folded": f"{difference:.0e}"}
            )


def turns(runs: list[Callable[[], object]], device: torch.device, rounds: int) -> list[list[float]]:
    """Seconds of a call of each, round by round."""
    repeats = max(1, int(0.005 / min(seconds(run, device) for run in runs for _ in range(3))))

    def repeated(run: Callable[[], object]) -> float:
        return seconds(lambda: [run() for _ in range(repeats)], device) / repeats

    times = [[repeated(run) for run in runs] for _ in range(rounds)]
    return [list(each) for each in zip(*times, strict=True)]
