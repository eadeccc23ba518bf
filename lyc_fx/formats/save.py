"""Writing what a format has made: a safetensors file, or a PEFT directory."""

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from lyc_fx.errors import BadFile
from lyc_fx.formats.format import Contents
from lyc_fx.storage.files import replacing, umask, unique, write_safetensors
from lyc_fx.storage.may_overwrite import PEFT_CONFIG, PEFT_TENSORS, Path_, free, move_folder


def save(
    contents: Contents | Mapping[str, Contents], path: Path_, inputs: Iterable[Path_] = (), *, force: bool = False
) -> None:
    """Write a file; where there is a configuration a directory; of several components a directory with one for each.
    It appears under its name when it is whole.

    A file of that name is replaced; a directory only with `force`, and only where all that is in it is of that kind.
    Raises BadFile where the path cannot be written, or is one of `inputs`.
    """
    if isinstance(contents, Contents) and contents.config is None:
        _write(contents, free(path, inputs, folder=False, force=True))
        return
    target = free(path, inputs, folder=True, force=force)
    part = unique(target)
    try:
        part.mkdir(0o700)
        for name, each in ({"": contents} if isinstance(contents, Contents) else contents).items():
            _fill(part / name, each)
        part.chmod(0o777 & ~umask())
        move_folder(part, target)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror or error}; nothing was written") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(folder: Path, contents: Contents) -> None:
    """PEFT's two files."""
    folder.mkdir(exist_ok=True)
    _write(contents, folder / PEFT_TENSORS)
    with replacing(folder / PEFT_CONFIG) as file:
        file.write_bytes((json.dumps(contents.config, indent=2) + "\n").encode())


def _write(contents: Contents, target: Path) -> None:
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in contents.tensors.items()}
    with replacing(target) as part, part.open("wb") as file:
        write_safetensors(file, layout, contents.tensors.items(), contents.metadata)
