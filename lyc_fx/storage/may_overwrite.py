"""Checking where an output may be written: existing files and folders are replaced only if the user says so."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lyc_fx.errors import BadFile
from lyc_fx.storage.files import path_of, unique
from lyc_fx.storage.system import sync_path

Path_ = str | os.PathLike[str]
_WEIGHTS = ".safetensors"
FOLD = "lyc_fx.fold"
"""The metadata key of merged checkpoints that describes what was folded in (`lyc_fx.checkpoint.provenance`)"""
PEFT_TENSORS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_FILES = frozenset({PEFT_TENSORS, PEFT_CONFIG})
"""The only files in a PEFT directory that lyc-fx writes; that of a training run has more, such as optimizer state"""


def free(path: Path_, inputs: Iterable[Path_] = (), *, folder: bool, force: bool, suffix: str = _WEIGHTS) -> Path:
    """Check that an output file or folder may be written, and return its path. An empty folder may be written.

    Raises BadFile for a path that exists (unless `force`), for a link, for a file without the suffix,
    and for a path that is an input, is inside one, or contains one. Even with `force`, raises it for an existing folder
    that lyc-fx did not write.
    """
    target = path_of(path, "the output")
    if target.is_symlink():
        raise BadFile(f"{target}: is a link to {os.readlink(target)}: give that path instead, or remove the link")
    if not folder:
        if target.is_dir():
            raise BadFile(f"{target}: is a directory; name the output file")
        if target.exists() and not target.is_file():  # /dev/null would be replaced by a file
            raise BadFile(f"{target}: is not a regular file; name another output")
        if target.suffix != suffix:
            if suffix == _WEIGHTS:
                raise BadFile(f"{target}: the output is a safetensors file: name it {target.name}{_WEIGHTS}")
            named = target.with_suffix(suffix).name
            raise BadFile(f"{target}: the output is a {suffix} file, as the base is: name it {named}")
    for source in map(Path, inputs):
        _refuse_input(target, source)
    if folder and target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists() and not force:
        raise BadFile(f"{target}: exists; force=True (command line: --force) replaces it")
    if folder and target.exists() and not _ours(target):
        raise BadFile(f"{target}: exists, and lyc-fx did not write everything in it; name another output")
    return target


def _ours(folder: Path) -> bool:
    """Return whether lyc-fx folded all weights in a folder, or the folder holds PEFT adapters and nothing else."""
    files = [each for each in folder.rglob("*") if not each.is_dir()] if folder.is_dir() else []
    weights = [each for each in files if each.suffix == _WEIGHTS]
    return bool(weights) and ({each.name for each in files} <= PEFT_FILES or all(map(_folded, weights)))


def _folded(file: Path) -> bool:
    try:
        with safe_open(file, "numpy") as source:
            return FOLD in (source.metadata() or {})
    except (OSError, SafetensorError):  # a file that lyc-fx wrote could be read
        return False


def _refuse_input(target: Path, source: Path) -> None:
    if target.exists() and source.exists() and os.path.samefile(target, source):
        raise BadFile(f"{target}: is an input as well as the output; name another output")
    own, other = target.resolve(), source.resolve()
    if source.is_dir() and other in own.parents:
        raise BadFile(f"{target}: is inside {source}, which is an input; name another output")
    if target.is_dir() and own in other.parents:
        raise BadFile(f"{target}: contains {source}, which is an input; name another output")


def move_folder(work: Path, target: Path) -> None:
    """Rename a finished folder to `target`, then remove what had that name before. Raises OSError."""
    aside = unique(target)
    there = target.exists()
    if there:
        target.replace(aside)
    try:
        work.replace(target)
    except OSError:
        if there:
            aside.replace(target)
        raise
    sync_path(target.parent)
    shutil.rmtree(aside, ignore_errors=True)
