"""Ways to spoil the bytes of a file: each takes a valid draft and gives another. The table below names them."""

import random
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from hostile import wild
from hostile.draft import Draft, Raw, encoded

Attack = Callable[[random.Random, Draft], Draft]
_DTYPES = (
    "F4", "F6_E2M3", "F6_E3M2", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "BOOL", "U8", "I8",
    "I16", "U16", "F16", "BF16", "I32", "U32", "F32", "F64", "I64", "U64", "C64", "F128", "f32", "", "object",
)  # fmt: skip
_BITS = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "C64": 64,
    "F32": 32,
    "I32": 32,
    "U32": 32,
}
_BITS |= dict.fromkeys(("I16", "U16", "F16", "BF16"), 16)


def random_bytes(rng: random.Random, draft: Draft) -> Draft:
    start = rng.choice([b"", b"\x08\0\0\0\0\0\0\0", b"\x80\x04", b"PK\x03\x04", b"{", b"\x02\0\0\0\0\0\0\0{}"])
    return replace(draft, content=start + rng.randbytes(rng.choice([0, 1, 7, 8, 9, 100, 5000])))


def flipped_bytes(rng: random.Random, draft: Draft) -> Draft:
    content = bytearray(draft.bytes())
    for _ in range(rng.choice([1, 1, 2, 8])):
        content[rng.randrange(min(len(content), rng.choice([8, 400, len(content)])))] = rng.randrange(256)
    return replace(draft, content=bytes(content))


def cut(rng: random.Random, draft: Draft) -> Draft:
    content = draft.bytes()
    place = rng.randrange(len(content) + 1)
    return replace(draft, content=rng.choice([content[:place], content[place:], content + rng.randbytes(9)]))


def header_length(rng: random.Random, draft: Draft) -> Draft:
    true = len(draft.bytes()) - 8 - len(draft.data)
    wrong = [0, 1, 2, true - 1, true + 1, true + len(draft.data), true + len(draft.data) + 1, 10**8, 10**8 + 1]
    return replace(draft, length=rng.choice([*wrong, *wild.HUGE]))


def structure(rng: random.Random, draft: Draft) -> Draft:
    """Fields of a tensor that are missing, added, or of a wrong type; or a header that is no table of tensors."""
    if rng.random() < 0.2:
        text = encoded(rng.choice([wild.value(rng), {"a": wild.value(rng)}, Raw(wild.deep(rng))]))
        text = text.encode("utf-8", "surrogatepass")
        return replace(draft, content=len(text).to_bytes(8, "little") + text + draft.data)
    position = rng.randrange(len(draft.header))
    key, spec = draft.header[position]
    spec = dict(spec)
    field = rng.choice([*spec, "extra"])
    match rng.randrange(3):
        case 0 if field in spec:
            del spec[field]
        case 1:
            return _with(draft, position, key, wild.value(rng))
        case _:
            spec[field] = wild.value(rng)
    return _with(draft, position, key, spec)


def duplicate_keys(rng: random.Random, draft: Draft) -> Draft:
    key, spec = rng.choice(draft.header)
    other = rng.choice(draft.header)[1]
    if rng.random() < 0.5 and isinstance(spec, dict):
        spec = Raw(encoded(spec)[:-1] + "," + encoded(other)[1:])
    header = [*draft.header]
    header.insert(rng.randrange(len(header) + 1), (key, rng.choice([spec, other])))
    return replace(draft, header=tuple(header))


def offsets(rng: random.Random, draft: Draft) -> Draft:
    position = rng.choice(draft.names())
    key, spec = draft.header[position]
    start, end = spec["data_offsets"]
    shift = rng.choice([1, -1, 4, len(draft.data), -start, *wild.HUGE])
    changed = rng.choice([
        [end, start], [start + shift, end + shift], [start, end + shift], [start + shift, end], [start], [], [0, 0],
        [start, end, end], [-1, end], [start, 1.5], [0, len(draft.data)], ["0", end], None,
    ])  # fmt: skip
    return _with(draft, position, key, {**spec, "data_offsets": changed})


def shapes(rng: random.Random, draft: Draft) -> Draft:
    position = rng.choice(draft.names())
    key, spec = draft.header[position]
    shape = list(spec["shape"])
    match rng.randrange(7):
        case 0:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice([0, 1, -1, 2, 1.5, *wild.HUGE]))
        case 1 if shape:
            shape[rng.randrange(len(shape))] = rng.choice([0, 1, -1, *wild.HUGE, wild.value(rng)])
        case 2:
            shape = [rng.choice([0, 1, *wild.HUGE]) for _ in range(rng.randrange(6))]
        case 3:
            shape += [1] * rng.choice([1, 2, 30, 63, 64, 65, 1000, 50_000])
        case 4:
            rng.shuffle(shape)
        case 5:  # nothing behind a huge shape
            return _placed(draft, position, {**spec, "shape": [0, rng.choice(wild.HUGE)][:: rng.choice([1, -1])]}, b"")
        case _:
            shape = shape[:-1]
    return _with(draft, position, key, {**spec, "shape": shape})


def dtypes(rng: random.Random, draft: Draft) -> Draft:
    """Another dtype, and as many bytes as that needs."""
    position = rng.choice(draft.names())
    spec, code = dict(draft.header[position][1]), rng.choice(_DTYPES)
    count = 1
    for size in spec["shape"]:
        count *= size
    return _placed(draft, position, {**spec, "dtype": code}, rng.randbytes(count * _BITS.get(code, 8) // 8))


def values(rng: random.Random, draft: Draft) -> Draft:
    """Bits of any kind in one tensor: NaN, infinities, denormals, huge numbers."""
    position = rng.choice(draft.names())
    start, end = draft.header[position][1]["data_offsets"]
    pieces = (
        b"\xff",
        b"\x7f",
        b"\0",
        b"\x80",
        b"\x01\0\0\0",
        b"\0\0\xc0\x7f",
        b"\0\0\x80\xff",
        b"\x7b",
        rng.randbytes(8),
    )
    filled = (rng.choice(pieces) * (end - start + 1))[: end - start]
    if rng.random() < 0.5 and end - start >= 8:
        place = start + rng.randrange((end - start) // 8) * 8
        return replace(draft, data=draft.data[:place] + filled[:8] + draft.data[place + 8 :])
    return replace(draft, data=draft.data[:start] + filled + draft.data[end:])


def names(rng: random.Random, draft: Draft) -> Draft:
    position = rng.choice(draft.names())
    key, spec = draft.header[position]
    module, _, suffix = key.partition(".")
    odd = wild.text(rng)
    changed = rng.choice(
        [odd, f"{odd}.{suffix}", f"{module}.{odd}", f"{odd}{key}", f"{key}{odd}", f"{module}{odd}.{suffix}"]
    )
    if rng.random() < 0.4:  # of all tensors, so that the adapter stays whole
        tail = f"{odd}_" if rng.random() < 0.5 else f"unet.{odd}."
        return replace(draft, header=tuple((k if k == "__metadata__" else f"{tail}{k}", v) for k, v in draft.header))
    return _with(draft, position, changed, spec)


def alpha(rng: random.Random, draft: Draft) -> Draft:
    """An alpha of any shape, dtype and value beside the first tensor (or in place of the one that is there)."""
    first = draft.header[draft.names()[0]][0]
    module = first[: -len(next((t for t in _TAILS if first.endswith(t)), ""))] or first.partition(".")[0]
    shape = rng.choice([[], [1], [1, 1], [2], [0], [3, 3]])
    code = rng.choice(_DTYPES)
    count = 1
    for size in shape:
        count *= size
    number = rng.choice([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e-320, 1e308, 3e38])
    own = (struct.pack("<d", number) if code == "F64" else rng.randbytes(8)) * (count + 1)
    own = own[: count * _BITS.get(code, 8) // 8]
    kept = [i for i in draft.names() if draft.header[i][0] != f"{module}.alpha"]
    header = [(k, v) for i, (k, v) in enumerate(draft.header) if i in kept or k == "__metadata__"]
    end = len(draft.data)
    spec = {"dtype": code, "shape": shape, "data_offsets": [end, end + len(own)]}
    if len(kept) < len(draft.names()):  # no hole may be left
        header.append((f"{module}.unused", next(v for k, v in draft.header if k == f"{module}.alpha")))
    return replace(draft, header=(*header, (f"{module}.alpha", spec)), data=draft.data + own)


_TAILS = (".lora_A.weight", ".lora_B.weight", ".lora_up.weight", ".lora_down.weight")


def _with(draft: Draft, position: int, key: str, spec: Any) -> Draft:
    header = [*draft.header]
    header[position] = (key, spec)
    return replace(draft, header=tuple(header))


def _placed(draft: Draft, position: int, spec: dict[str, Any], own: bytes) -> Draft:
    """One tensor with other bytes; those behind it move."""
    start, end = draft.header[position][1]["data_offsets"]
    header = []
    for i, (key, other) in enumerate(draft.header):
        if i == position:
            other = {**spec, "data_offsets": [start, start + len(own)]}
        elif key != "__metadata__" and other["data_offsets"][0] >= end and i > position:
            moved = [place + len(own) - end + start for place in other["data_offsets"]]
            other = {**other, "data_offsets": moved}
        header.append((key, other))
    return replace(draft, header=tuple(header), data=draft.data[:start] + own + draft.data[end:])
