"""Reading safetensors files with errors that a person can act on."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lyc_fx.errors import BadFile
from lyc_fx.storage.mistaken import said_of_content, said_of_missing

_MOST_DIMENSIONS = 64
"""Of a tensor of torch"""
_PACKED = ("F4", "F6_")
"""How the names of dtypes begin of which several values share a byte"""


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Any]:
    """`safetensors.safe_open(path)` on the CPU. Raises BadFile, naming the file and what to do."""
    path = Path(path)
    _refuse(path)
    try:
        handle = safe_open(path, framework="pt", device="cpu")
    except (SafetensorError, OSError) as error:
        size = path.stat().st_size
        raise BadFile(
            f"{path}: not a whole safetensors file ({size} bytes; {error}). Download or save it again."
        ) from error
    with handle:
        try:
            _refuse_shapes(path, handle)
            yield handle
        except SafetensorError as error:
            raise BadFile(f"{path}: {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata. Raises BadFile."""
    with opened(path) as handle:
        for key in handle.keys():
            code = handle.get_slice(key).get_dtype()
            if code.startswith(_PACKED):
                raise BadFile(f"{path}: {key} is stored as {code}, which torch does not compute with")
        return {key: handle.get_tensor(key) for key in handle.keys()}, dict(handle.metadata() or {})


def start_of(path: Path, size: int) -> bytes:
    """The first bytes of a file. Raises BadFile where there is none that can be read to its end."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise BadFile(f"{path}: is a directory; name a .safetensors file")
        if not stat.S_ISREG(mode):  # opening a pipe would wait for its other end
            raise BadFile(f"{path}: is not a regular file")
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError as error:
        raise BadFile(f"{path}: {said_of_missing(str(path))}") from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL
        raise BadFile(f"{str(path)!r}: is no path: {error}") from error


def _refuse_shapes(path: Path, handle: Any) -> None:
    """A header may claim shapes for an empty tensor, or one of a single value, that torch takes for overflow."""
    for key in handle.keys():
        shape = handle.get_slice(key).get_shape()
        if len(shape) > _MOST_DIMENSIONS:
            raise BadFile(f"{path}: {key} has {len(shape)} dimensions, torch has {_MOST_DIMENSIONS}")
        if any(size >= 2**63 for size in shape):
            raise BadFile(f"{path}: {key} has the shape {tuple(shape)}, which is too large")


def _refuse(path: Path) -> None:
    said = said_of_content(path, start_of(path, 64))
    if said is not None:
        raise BadFile(f"{path}: {said}")
