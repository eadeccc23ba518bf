"""Writing what a format has made: a safetensors file, or a PEFT directory."""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from lyc_fx.errors import BadFile
from lyc_fx.files import path_of, replacing, umask, unique, write_safetensors
from lyc_fx.formats.format import Contents

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
"""The files of a PEFT directory"""


def save(contents: Contents, path: str | os.PathLike[str], inputs: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Write a file, or where there is a configuration a new directory; it appears under its name when it is whole.

    Raises BadFile where the path is one of `inputs`, cannot be written, or is a directory that has something in it.
    """
    target = path_of(path, "the output")
    if contents.config is None:
        _write(contents, target, inputs)
        return
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadFile(f"{target}: exists; a PEFT adapter is a directory of its own: name a new one")
    part = unique(target)
    try:
        part.mkdir(0o700)
        _write(contents, part / TENSORS, ())
        with replacing(part / CONFIG) as file:
            file.write_text(json.dumps(contents.config, indent=2) + "\n")
        part.chmod(0o777 & ~umask())
        part.replace(target)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(contents: Contents, target: Path, inputs: Iterable[str | os.PathLike[str]]) -> None:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in contents.tensors.items()}
    with replacing(target, inputs) as part, part.open("wb") as file:
        write_safetensors(file, layout, contents.tensors.items(), contents.metadata)
