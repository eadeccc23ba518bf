"""A device as three numbers: the roofline model (Williams, Waterman and Patterson, 2009), and the time of a launch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import final

import sympy
import torch

from lyc_fx.graph.costs.kernels import Kernel

_WIDTH = 1024
_ROUNDS = 7


@final
@dataclass(frozen=True)
class Machine:
    """A device, for one dtype of activations."""

    flops: float
    """Operations per second of a large matrix product"""
    bandwidth: float
    """Bytes per second of a large copy, read and written"""
    launch: float
    """Seconds of the smallest kernel"""

    def seconds(self, kernels: Sequence[Kernel]) -> sympy.Expr:
        """`Σ max(flops / F, traffic / B) + launch`"""
        each = [sympy.Max(k.flops / self.flops, k.traffic / self.bandwidth) + self.launch for k in kernels]
        return sum(each, sympy.Integer(0))


@cache
def measured(device: torch.device, dtype: torch.dtype) -> Machine:
    """Measure a device, once per process; this takes about a quarter of a second.

    A device that this machine lacks has the proportions of the one that it has.
    """
    there = device if device.type == "cpu" or _present(device) else torch.device("cpu")
    a = torch.randn(_WIDTH, _WIDTH, device=there, dtype=dtype)
    large, small = torch.zeros(1 << 24, device=there, dtype=torch.float32), torch.zeros(16, device=there)
    other = torch.empty_like(large)
    product = _best(there, lambda: a @ a)
    copy = _best(there, lambda: other.copy_(large))
    launch = _best(there, lambda: [small + 1 for _ in range(50)]) / 50
    return Machine(2 * _WIDTH**3 / product, 2 * large.nbytes / copy, launch)


def _present(device: torch.device) -> bool:
    found = torch.accelerator.current_accelerator()
    return found is not None and found.type == device.type


def _best(device: torch.device, run: Callable[[], object]) -> float:
    """The shortest of several runs, in seconds."""
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        if device.type != "cpu":
            torch.accelerator.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)
