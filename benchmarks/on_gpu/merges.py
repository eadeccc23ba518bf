"""Bytes of weights per second that merges read and write, beside the copy of a large tensor."""

from collections.abc import Iterator

import torch
from forwarding.nets import adapters
from merge import layers
from swapping.clock import bandwidth, seconds

import lyc_fx


@torch.no_grad()
def rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """Layers of SDXL's shapes in bfloat16."""
    with torch.device(device):
        model = layers(small)
    size = 2 * sum(parameter.nbytes for parameter in model.parameters())
    copied = bandwidth(device, 1 << 20 if small else 1 << 28)
    yield {"what": "copy", "GB/s": f"{copied / 1e9:.1f}", "of the copy": "1.00"}
    for algorithm in ("LoRA 16",) if small else ("LoRA 16", "LoHa 8", "DoRA 16"):
        made = adapters(model, algorithm)
        assert made is not None
        took = {"merge": min(seconds(lambda: lyc_fx.merge(model, made, 0.1, lossy=True), device) for _ in range(3))}  # noqa: B023
        with lyc_fx.live(model) as live:
            took["live"] = min(seconds(lambda: live.set({made: 0.1}, lossy=True), device) for _ in range(3))  # noqa: B023
        for what, least in took.items():
            rate = size / least
            yield {"what": f"{what}, {algorithm}", "GB/s": f"{rate / 1e9:.2f}", "of the copy": f"{rate / copied:.3f}"}
