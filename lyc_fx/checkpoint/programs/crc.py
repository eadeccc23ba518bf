"""The CRC-32 of bytes that follow each other, from those of the parts.

A CRC is a polynomial over GF(2) modulo the generator P, with the lowest power in the highest bit; of parts a, b:

    crc(ab) = crc(a) · x^(8 |b|) + crc(b)  mod P
"""

import zlib
from typing import NamedTuple, Self

import torch
from torch import Tensor

_GENERATOR = 0xEDB88320
_ONE = 1 << 31
_BYTE = 1 << 23
"""x⁸"""


class Crc(NamedTuple):
    """The CRC-32 of some bytes of a file."""

    start: int
    size: int
    crc: int

    @classmethod
    def of(cls, start: int, values: Tensor) -> Self:
        """That of a tensor's bytes, the first of which is at `start`."""
        return cls(start, values.nbytes, zlib.crc32(values.reshape(-1).view(torch.uint8).numpy().data))


def joined(first: int, second: int, size: int) -> int:
    """The CRC-32 of bytes with the CRC `first` and then `size` bytes with the CRC `second`."""
    power, square = _ONE, _BYTE
    while size:
        if size & 1:
            power = _product(power, square)
        square = _product(square, square)
        size >>= 1
    return _product(power, first) ^ second


def _product(one: int, other: int) -> int:
    total, bit = 0, _ONE
    while bit:
        if one & bit:
            total ^= other
        bit >>= 1
        other = (other >> 1) ^ (_GENERATOR if other & 1 else 0)
    return total
