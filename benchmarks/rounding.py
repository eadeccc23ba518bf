"""How many of N sampled float64 values are not rounded to the nearest, by lyc-fx and by torch's own cast; and how long
both take.

    python benchmarks/rounding.py --samples 1e9

The judge is integer arithmetic on the bits of the float64: half of the last place that stays is added (with ties to
even), and the rest is cut off.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from lyc_fx.numerics.rounding import cast, nearest

BLOCK = 1 << 19
"""Elements at once, as in a fold"""
DROPPED = {torch.bfloat16: 45, torch.float16: 42}
"""Bits of the 52 of a float64 that the dtype does not have"""


def exact(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest value, ties to even, of normal numbers."""
    drop = DROPPED[dtype]
    bits = values.view(torch.int64)
    up = (1 << (drop - 1)) - 1 + ((bits >> drop) & 1)
    return ((bits + up) >> drop << drop).view(torch.float64)


def sampled(dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Weights in the range of those of a model: none is subnormal in the dtype."""
    values = torch.randn(BLOCK, generator=generator, dtype=torch.float64).mul_(0.05)
    small = values.abs() < torch.finfo(dtype).smallest_normal
    return torch.where(small, torch.full_like(values, 0.01), values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=float, default=1e8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    roundings: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {"lyc-fx": nearest, "torch's cast": cast}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    for dtype in DROPPED:
        generator = torch.Generator().manual_seed(options.seed)
        wrong, seconds, count = dict.fromkeys(roundings, 0), dict.fromkeys(roundings, 0.0), 0
        while count < options.samples:
            values = sampled(dtype, generator)
            right = exact(values, dtype)
            count += values.numel()
            for name, rounding in roundings.items():
                start = time.perf_counter()
                rounded = rounding(values, dtype)
                seconds[name] += time.perf_counter() - start
                wrong[name] += int((rounded.to(torch.float64) != right).sum())
        for name in roundings:
            each = 1e9 * seconds[name] / count
            print(f"{dtype}: {name}: {wrong[name]} of {count:,} misrounded, {each:.2f} ns per element")


if __name__ == "__main__":
    main()
