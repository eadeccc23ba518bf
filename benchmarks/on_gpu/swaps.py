"""Swaps without a recompile: of adapters attached to a compiled UNet, and of those of a compiled program."""

from collections.abc import Iterator

import torch
from forwarding.nets import adapters as block_adapters
from forwarding.nets import inputs as block_inputs
from forwarding.nets import net
from swapping import unet
from swapping.clock import seconds
from swapping.turns import turns
from torch._dynamo.utils import counters

import lyc_fx


def rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """Adapters of four ranks take turns in a UNet."""
    torch.compiler.reset()
    counters.clear()
    model = unet.unet([8] if small else [128, 256, 512]).to(device)
    ranks = (2, 4) if small else (3, 16, 8, 1)
    sets = [(rank, unet.adapters(model, rank, rank)) for rank in ranks]
    backend, steps = ("eager", 2) if small else ("inductor", 10)
    return turns(model, unet.inputs(device), sets, rank=max(ranks), steps=steps, backend=backend)


@torch.no_grad()
def exchange_rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """Adapters are exchanged in compiled programs of two blocks, of each kind of adapter that takes part."""
    for algorithm in ("LoRA 16",) if small else ("LoRA 16", "LoHa 8", "LoKr 8, rank 16", "DoRA 16", "Diag-OFT 32"):
        torch.compiler.reset()
        model, x = net("linear", 64 if small else 1024).to(device), block_inputs("linear", 64 if small else 1024, 16)
        x, choices = x.to(device), [block_adapters(model, algorithm) for _ in range(3)]
        [first, *others] = [choice for choice in choices if choice is not None]
        spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), first, 0.7, rank=16)
        staged = lyc_fx.stage(lyc_fx.lower(spliced))
        compiled, times, worst = (
            torch.compile(staged, fullgraph=True, backend="eager" if small else "inductor"),
            [],
            0.0,
        )
        compiled(x)
        graphs = counters["stats"]["unique_graphs"]
        with torch._dynamo.config.patch(error_on_recompile=True):
            for choice in others:
                times.append(seconds(lambda: lyc_fx.exchange(staged, choice, -0.4), device))  # noqa: B023  # at once
                wanted = staged(x)
                worst = max(worst, ((compiled(x) - wanted).abs().max() / wanted.abs().max()).item())
        yield (
            {"algorithm": algorithm, "exchange, ms": f"{1e3 * min(times):.1f}"}
            | {"recompiles": counters["stats"]["unique_graphs"] - graphs, "difference from eager": f"{worst:.0e}"}
        )
