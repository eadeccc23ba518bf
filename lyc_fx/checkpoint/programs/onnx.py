"""`.onnx`: a protobuf message, whose weights are inside it, or in files beside it.

Format: ModelProto has the graph (field 7) and texts (metadata_props, 14). The graph has nodes (1) and initializers (5),
which are TensorProto: dims (1), data_type (2), name (8), raw_data (9), external_data (13: location, offset, length) and
data_location (14). The order of a message's fields is free (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto).
"""

import mmap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import final

import torch

from lyc_fx.checkpoint.programs.program import TEXTS, Held, Program
from lyc_fx.checkpoint.programs.protobuf import Data, Field, fields, number_at
from lyc_fx.errors import BadFile
from lyc_fx.storage.container import start_of

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
TEXT = 14
"""The field of a text in ModelProto"""
_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 4: torch.uint16, 5: torch.int16, 6: torch.int32, 7: torch.int64,
    9: torch.bool, 10: torch.float16, 11: torch.float64, 12: torch.uint32, 13: torch.uint64, 14: torch.complex64,
    16: torch.bfloat16, 17: torch.float8_e4m3fn, 18: torch.float8_e4m3fnuz, 19: torch.float8_e5m2,
    20: torch.float8_e5m2fnuz, 24: torch.float8_e8m0fnu,
}  # fmt: skip
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch says of a node which module it is of: `['', 'layers', 'layers.0', 'linear_3']`"""


def read_onnx(path: Path) -> Program:
    """Find the weights. Raises BadFile for what is no whole ONNX file, or lacks a file of its weights."""
    start_of(path, 1)
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _program(path, data, len(data))
    except ValueError as error:  # also of mmap, for an empty file
        raise BadFile(f"{path}: is no ONNX file, or is cut off: {error}") from error


def _program(path: Path, data: mmap.mmap, size: int) -> Program:
    graphs = [each for each in fields(data, 0, size) if each.number == _GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    files: dict[Path, int] = {path: size}
    held: dict[str, Held] = {}
    odd: dict[str, str] = {}
    users: defaultdict[str, set[str]] = defaultdict(set)
    turned: set[str] = set()
    for each in fields(data, graphs[0].start, graphs[0].stop):
        if each.number == _INITIALIZER:
            tensor = _Tensor.read(data, each)
            found = _held(path, tensor, files)
            if isinstance(found, str):
                odd[tensor.name] = found
            else:
                held[tensor.name] = found
        elif each.number == _NODE:
            inputs, operator, module = _node(data, each)
            turned |= set(inputs[1:2]) if operator == "ConvTranspose" else set()
            of_module = f" of {module}" if module else ""
            for name in inputs:
                users[name].add(f"{'Gather' if operator == 'Gather' else 'a layer'}{of_module}")
    odd |= {
        name: f"is read as one tensor by {', '.join(sorted(found))}: the file says one name of what the model tied"
        for name, found in users.items()
        if name in held and len(found) > 1
    }
    return Program(path, tuple(files), held, odd, dict(_texts(data, size)), frozenset(turned))


@final
@dataclass
class _Tensor:
    name: str = ""
    shape: tuple[int, ...] = ()
    code: int = 0
    """Its dtype"""
    raw: Field | None = None
    outside: dict[str, str] = field(default_factory=dict)
    """Location, offset and length of data in another file"""

    @classmethod
    def read(cls, data: mmap.mmap, place: Field) -> "_Tensor":
        made = cls()
        for each in fields(data, place.start, place.stop):
            if each.number == 1:
                made.shape += tuple(_numbers(data, each))
            elif each.number == 2:
                made.code = number_at(data, each.start, each.stop)[0]
            elif each.number == 8:
                made.name = data[each.start : each.stop].decode()
            elif each.number == 9:
                made.raw = each
            elif each.number == 13:
                key, value = pair_at(data, each)
                made.outside[key] = value
        return made


def _held(path: Path, tensor: _Tensor, files: dict[Path, int]) -> Held | str:
    """Where a tensor is, or why it cannot be changed there; notes the size of the file that it is in."""
    dtype = _DTYPES.get(tensor.code)
    if dtype is None:
        return "has a dtype that torch lacks"
    strides = tuple(prod(tensor.shape[i + 1 :]) for i in range(len(tensor.shape)))
    size = prod(tensor.shape) * dtype.itemsize
    if tensor.outside:
        file, start = path.parent / _inside(path, tensor), int(tensor.outside.get("offset", "0"))
        if file not in files:
            if not file.is_file():
                raise BadFile(f"{path}: {tensor.name} is in {file}, which is missing: copy it there too")
            files[file] = file.stat().st_size
        if start + size > files[file] or int(tensor.outside.get("length", size)) != size:
            raise BadFile(f"{file}: is cut off, or of another model: {tensor.name} is not whole in it")
        found = Held.of(file, tensor.name, dtype, tensor.shape, strides, start)
    elif tensor.raw is None:
        return "is stored as a list of numbers, not as bytes (raw_data)"
    else:
        if tensor.raw.stop - tensor.raw.start != size:
            raise ValueError(f"{tensor.name} has {tensor.raw.stop - tensor.raw.start} bytes, not {size}")
        found = Held.of(path, tensor.name, dtype, tensor.shape, strides, tensor.raw.start)
    assert found is not None
    return found


def _inside(path: Path, tensor: _Tensor) -> Path:
    location = Path(tensor.outside.get("location", ""))
    if location.is_absolute() or ".." in location.parts or not location.parts:
        raise BadFile(f"{path}: {tensor.name} is said to be in {str(location)!r}, which is outside of its folder")
    return location


def _node(data: mmap.mmap, place: Field) -> tuple[list[str], str, str]:
    """What a node reads, its operator, and the module that it is of, empty where the file does not say it."""
    inputs, operator, module = [], "", ""
    for each in fields(data, place.start, place.stop):
        if each.number == 1:
            inputs.append(data[each.start : each.stop].decode())
        elif each.number == 4:
            operator = data[each.start : each.stop].decode()
        elif each.number == 9:
            key, value = pair_at(data, each)
            if key == _SCOPES:
                module = ", ".join(value.strip("[]").split(", ")[:-1][-1:])
    return inputs, operator, module


def _numbers(data: Data, place: Field) -> Iterator[int]:
    """A repeated number: one, or several packed in bytes. Both look alike."""
    position = place.start
    while position < place.stop:
        value, position = number_at(data, position, place.stop)
        yield value


def pair_at(data: mmap.mmap, place: Field) -> tuple[str, str]:
    """The key and the value of a StringStringEntryProto."""
    found = {each.number: data[each.start : each.stop].decode() for each in fields(data, place.start, place.stop)}
    return found.get(1, ""), found.get(2, "")


def _texts(data: mmap.mmap, size: int) -> Iterator[tuple[str, str]]:
    for each in fields(data, 0, size):
        if each.number == TEXT:
            key, value = pair_at(data, each)
            if key in TEXTS:
                yield key, value
