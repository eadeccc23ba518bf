"""The CRC-32 of bytes that follow each other, from those of the parts.

A CRC is a polynomial over GF(2) modulo the generator P, with the lowest power in the highest bit; of parts a, b:

    crc(ab) = crc(a) · x^(8 |b|) + crc(b)  mod P
"""

_GENERATOR = 0xEDB88320
_ONE = 1 << 31
_BYTE = 1 << 23
"""x⁸"""


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
