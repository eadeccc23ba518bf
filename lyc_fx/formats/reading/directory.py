"""The directories that PEFT saves: `adapter_model.safetensors` beside `adapter_config.json`."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lyc_fx.errors import BadFile
from lyc_fx.formats.reading import texts
from lyc_fx.storage.container import start_of
from lyc_fx.storage.may_overwrite import PEFT_CONFIG as CONFIG
from lyc_fx.storage.may_overwrite import PEFT_TENSORS as TENSORS

_PICKLE = "adapter_model.bin"


def tensors_of(path: Path) -> Path:
    """The file of a directory; the path itself where it is none.

    Raises BadFile where the directory holds a pickle, or adapters in directories below it.
    """
    if not os.path.isdir(path) or os.path.isfile(path / TENSORS):  # pathlib raises for a name with a NUL in it
        return path / TENSORS if os.path.isdir(path) else path
    if (path / _PICKLE).is_file():
        raise BadFile(
            f"{path}: holds {_PICKLE}, a pickle, which can run code when loaded. Convert it where you trust it: "
            f"load it with PEFT and save_pretrained it again, which writes {TENSORS}"
        )
    below = sorted(each.parent.name for each in path.glob(f"*/{CONFIG}"))
    if below:
        raise BadFile(f"{path}: holds several adapters, one in each directory: name one of {', '.join(below)}")
    return path / TENSORS if (path / CONFIG).is_file() else path


def configuration(tensors: Path) -> Mapping[str, Any] | None:
    """The configuration beside a file of tensors; None where there is none. Raises BadFile."""
    path = tensors.parent / CONFIG
    return read_configuration(path) if os.path.isfile(path) else None


def read_configuration(path: Path) -> Mapping[str, Any]:
    """A configuration's file. Raises BadFile."""
    if not os.path.isfile(path):
        raise BadFile(f"{path}: there is no such file")
    return texts.configuration(start_of(path, texts.LARGEST + 1), str(path))
