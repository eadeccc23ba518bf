"""Reading safetensors files with errors that a person can act on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from lyc_fx.errors import BadFile

_PICKLES = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


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
            yield handle
        except SafetensorError as error:
            raise BadFile(f"{path}: {error}") from error


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a file, and its metadata. Raises BadFile."""
    with opened(path) as handle:
        return {key: handle.get_tensor(key) for key in handle.keys()}, dict(handle.metadata() or {})


def _refuse(path: Path) -> None:
    if path.is_dir():
        raise BadFile(f"{path}: is a directory; name a .safetensors file")
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except FileNotFoundError as error:
        raise BadFile(f"{path}: there is no such file") from error
    except OSError as error:
        raise BadFile(f"{path}: cannot be read: {error.strerror}") from error
    if start.startswith(_PICKLES):
        raise BadFile(
            f"{path}: is a pickle (torch.save), which can run code when loaded. "
            "Convert it where you trust it: safetensors.torch.save_file(torch.load(path, weights_only=True), out)"
        )
