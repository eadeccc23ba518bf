"""Writing files so that nothing is ever lost: beside the target, synced, then renamed."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from lyc_fx.errors import BadFile, WrongArgument
from lyc_fx.storage.system import sync_path

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
    torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e4m3fnuz: "F8_E4M3FNUZ", torch.float8_e5m2fnuz: "F8_E5M2FNUZ", torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
"""What safetensors calls a dtype"""
STORED = {code: dtype for dtype, code in CODES.items()}
"""The dtypes that a safetensors header may name, but for the packed ones (F4, F6)"""


def path_of(value: object, what: str) -> Path:
    """The path that was given for something. Raises WrongArgument for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        shown = f" ({value!r})" if isinstance(value, (int, float)) else ""
        raise WrongArgument(f"{what} is a path, not {type(value).__name__}{shown}")
    return Path(value)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it when the block ends well, removed when it does not.

    Raises BadFile where `path` is a directory, and for a disk that is full.
    """
    target = _replaceable(path)
    part = unique(target)
    with _said(target):
        try:  # before the file is there: a signal may come at any time
            part.touch(0o600, exist_ok=False)
            yield part
            _give(part, target)
            sync_path(target.parent)
        finally:
            with suppress(OSError):  # it is not there; or not even a folder is
                part.unlink()


@contextmanager
def replacing_together(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A path of the same name in a temporary folder beside `path`, for a file that others may belong to.

    When the block ends well, the others in that folder are moved beside `path`, and then the file itself; else they are
    removed. Raises as `replacing`.
    """
    target = _replaceable(path)
    folder = unique(target)
    with _said(target):
        try:
            folder.mkdir(0o700)
            yield folder / target.name
            for other in sorted(folder.iterdir(), key=lambda each: each.name == target.name):
                _give(other, target.with_name(other.name))
            sync_path(target.parent)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _replaceable(path: str | os.PathLike[str]) -> Path:
    target = Path(path)
    if target.is_dir():
        raise BadFile(f"{target}: is a directory; name the output file")
    if target.exists() and not target.is_file():  # /dev/null would be replaced by a file
        raise BadFile(f"{target}: is not a regular file; name another output")
    return target


def _give(part: Path, target: Path) -> None:
    """Sync a file, and give it its name."""
    sync_path(part)
    part.chmod(0o666 & ~umask())
    part.replace(target)


@contextmanager
def _said(target: Path) -> Iterator[None]:
    """Turn the system's errors into BadFile."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise BadFile(f"{target}: {error.strerror}; nothing was written") from error
        raise BadFile(f"{target}: cannot be written: {error.strerror or error}; nothing was written") from error


def unique(target: Path) -> Path:
    """A name beside `target` that nothing has yet."""
    return target.absolute().with_name(f".{target.name[:40]}.{secrets.token_hex(8)}.part")


def header_of(
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """Return the header of a safetensors file, and where in the file each tensor starts.

    Format: 8 bytes of header length, a JSON header padded with spaces to a multiple of 8 bytes, the tensors' bytes one
    after another (https://github.com/huggingface/safetensors).
    """
    # safe_open gives metadata in another order each time; the same input gives the same bytes.
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    position, starts = 0, {}
    for name, (dtype, shape) in layout.items():
        starts[name] = position
        position += prod(shape) * dtype.itemsize
        header[name] = {
            "dtype": CODES[dtype], "shape": list(shape), "data_offsets": [starts[name], position],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, {name: 8 + len(text) + start for name, start in starts.items()}


def write_safetensors(
    file: BinaryIO,
    layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
) -> None:
    """Write a safetensors file one tensor at a time; `tensors` come in the order of `layout`."""
    file.write(header_of(layout, metadata)[0])
    for (name, tensor), (expected, (dtype, shape)) in zip(tensors, layout.items(), strict=True):
        assert (name, tensor.dtype, tuple(tensor.shape)) == (expected, dtype, tuple(shape))
        if tensor.numel():
            file.write(tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)


def metadata_of(given: Mapping[str, str] | None) -> dict[str, str]:
    """Metadata that a safetensors header can hold. Raises WrongArgument for what is not all text."""
    for key, value in (given or {}).items():
        if not (isinstance(key, str) and isinstance(value, str)):
            raise WrongArgument(f"metadata: {key!r}: {value!r:.40} is not text, as keys and values must be: str(…) it")
    return dict(given or {})


def umask() -> int:
    """The permissions that the user's new files do not get."""
    current = os.umask(0)
    os.umask(current)
    return current
