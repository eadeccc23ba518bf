"""Where the fields of a protobuf message are, without reading what is in them.

Format: a message is its fields one after another. Each begins with a number, `field << 3 | kind`; kind 0 is a number, 1
and 5 are 8 and 4 bytes, 2 is bytes (a text, or a message) after their length. Numbers have 7 bits in each byte, the
lowest first, and the highest bit set in all bytes but the last (https://protobuf.dev/programming-guides/encoding).
"""

from collections.abc import Iterator
from typing import NamedTuple, Protocol


class Data(Protocol):
    """Bytes, or a file in memory."""

    def __getitem__(self, where: int, /) -> int: ...


class Field(NamedTuple):
    """One field; its value is in bytes `start:stop`, and the whole begins at `head`."""

    number: int
    head: int
    start: int
    stop: int


def fields(data: Data, start: int, stop: int) -> Iterator[Field]:
    """Yield the fields of the message in bytes `start:stop`. Raises ValueError where there is none."""
    position = start
    while position < stop:
        head = position
        key, position = number_at(data, position, stop)
        kind = key & 7
        if kind == 0:
            _, end = number_at(data, position, stop)
        elif kind == 2:
            size, position = number_at(data, position, stop)
            end = position + size
        elif kind in (1, 5):
            end = position + (8 if kind == 1 else 4)
        else:
            raise ValueError(f"at byte {head} is no field of a message")
        if end > stop:
            raise ValueError(f"the field at byte {head} goes beyond its message")
        yield Field(key >> 3, head, position, end)
        position = end


def number_at(data: Data, position: int, stop: int) -> tuple[int, int]:
    """Read a number. Returns it, and the byte after it. Raises ValueError where it does not end."""
    value = 0
    for count in range(10):
        if position + count >= stop:
            break
        byte = data[position + count]
        value |= (byte & 127) << 7 * count
        if byte < 128:
            return value, position + count + 1
    raise ValueError(f"the number at byte {position} does not end")


def entry(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return _number(number << 3 | 2) + _number(len(content)) + content


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
