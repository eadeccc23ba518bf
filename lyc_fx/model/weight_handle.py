"""One weight of a live model: how to read it, and how to replace it in a way that can be undone."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lyc_fx.base.quantizers import Quantized
from lyc_fx.binding.fitting import Weight

Fill = Callable[[Tensor, Tensor], None]
"""Computes a new weight from the first tensor and writes it to the second; both may be the same tensor"""


@final
@dataclass(frozen=True)
class WeightHandle:
    """Access to one weight of a model."""

    read: Callable[[], Tensor]
    """Returns the weight, computing it if need be"""
    write: Callable[[Fill, ExitStack], None]
    """Replaces the weight, and pushes onto the stack what restores the old one exactly"""
    transposed: bool = False
    """Whether it is stored as `(in, out)`"""
    of_transposed_conv: bool = False
    """Whether it is the weight of a transposed convolution, `(in, out/groups, *kernel)`"""
    note: str | None = None
    """What to tell the user when the weight is replaced"""
    obstacle: str | None = None
    """Why the tensor that `read` returns cannot be overwritten in place; None if it can"""
    quantized: Quantized | None = None
    """For a quantized weight, what is known of it; `read` then dequantizes it at each call"""

    @property
    def stored(self) -> Tensor:
        """The tensor, as the module has it where it is quantized."""
        return self.read() if self.quantized is None else self.quantized.stored

    @property
    def weight(self) -> Weight:
        """The description that adapters are bound by."""
        value = self.read() if self.quantized is None else self.quantized
        return Weight(tuple(value.shape), value.dtype, self.transposed, self.of_transposed_conv)


def filled(fill: Fill, old: Tensor) -> Tensor:
    """A new weight from an old one, which stays as it is."""
    value = torch.empty_like(old, memory_format=torch.contiguous_format)
    fill(old, value)
    return value
