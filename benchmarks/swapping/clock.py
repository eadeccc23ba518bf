"""Seconds on a device, and the bandwidth of its memory."""

import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Until all that was begun is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def bandwidth(device: torch.device, count: int = 1 << 26) -> float:
    """Bytes per second, read and written, of the copy of a large tensor."""
    source, target = torch.ones(count, device=device), torch.empty(count, device=device)
    target.copy_(source)
    return 2 * source.nbytes / min(seconds(lambda: target.copy_(source), device) for _ in range(5))
