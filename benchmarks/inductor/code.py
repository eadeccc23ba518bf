"""What can be counted in the code that inductor writes for a program."""

import re
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import final

import torch

_LAUNCH = re.compile(r"^\s+(triton_\w+)\.run\(", re.MULTILINE)
_GEMM = re.compile(r"\bextern_kernels\.(\w+)\(")
_FALLBACK = re.compile(r"\btorch\.ops\.([\w.]+)\(")
_ALLOCATION = re.compile(r"\bempty_strided_cuda\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)")
_RETURNED = re.compile(r"\b(buf\d+) = (?:extern_kernels\.|torch\.ops\.|buf\d+\[)")


@final
@dataclass(frozen=True)
class Code:
    """A program's code: inductor's Python source, with kernels in it and a function that calls them in order."""

    source: str
    sizes: dict[str, int]
    """The bytes of each buffer that a kernel or a GEMM writes"""

    @property
    def call(self) -> str:
        """The function that calls the kernels."""
        return self.source[self.source.index("def call(") : self.source.index("runner = Runner(")]

    @property
    def on_host(self) -> bool:
        """Whether a part of the program runs on the host."""
        return "empty_strided_cpu(" in self.call or "cpp_fused" in self.call

    @property
    def launches(self) -> Counter[str]:
        """The launches of fused kernels, by name: one that serves two layers counts twice."""
        return Counter(_LAUNCH.findall(self.call))

    @property
    def gemms(self) -> Counter[str]:
        """The calls of cuBLAS and cuDNN: mm, addmm, bmm, baddbmm, convolution."""
        return Counter(_GEMM.findall(self.call))

    @property
    def fallbacks(self) -> Counter[str]:
        """The calls of eager operators that inductor has neither a kernel nor a GEMM for."""
        return Counter(_FALLBACK.findall(self.call))

    @property
    def allocated(self) -> int:
        """The bytes of all buffers that are allocated, the result's too; one that is used again counts once."""
        own = sum(_bytes(shape, dtype) for shape, dtype in _ALLOCATION.findall(self.call))
        return own + sum(self.sizes.get(name, 0) for name in _RETURNED.findall(self.call))

    @property
    def written(self) -> int:
        """The bytes that kernels and GEMMs write, the result's too, wherever they write them."""
        return sum(self.sizes.values())


def _bytes(shape: str, dtype: str) -> int:
    return getattr(torch, dtype).itemsize * prod(int(n) for n in shape.split(",") if n.strip())
