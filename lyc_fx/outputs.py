"""Where an output may go: what was there before is lost only where the user says so."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from safetensors import SafetensorError, safe_open

from lyc_fx.errors import BadFile
from lyc_fx.files import path_of, unique
from lyc_fx.system import sync_path

Path_ = str | os.PathLike[str]
_WEIGHTS = ".safetensors"
FOLD = "lyc_fx.fold"
"""In the metadata of a merged checkpoint: what was folded into it (`lyc_fx.folding.provenance`)"""
PEFT_TENSORS, PEFT_CONFIG = "adapter_model.safetensors", "adapter_config.json"
PEFT_FILES = frozenset({PEFT_TENSORS, PEFT_CONFIG})
"""All that a PEFT directory of ours has; one of a training has more, such as the state of its optimizer"""


def free(path: Path_, inputs: Iterable[Path_] = (), *, folder: bool, force: bool) -> Path:
    """The path of a file or folder that may be written. A folder that is there and empty may.

    Raises BadFile for what exists (unless `force`), for links, for a file that is not named `.safetensors`, and for
    what is an input, lies in one, or holds one; with `force` also for a folder that lyc-fx did not write.
    """
    target = path_of(path, "the output")
    if target.is_symlink():
        raise BadFile(f"{target}: is a link to {os.readlink(target)}: name that itself, or remove the link")
    if not folder:
        if target.is_dir():
            raise BadFile(f"{target}: is a directory; name the output file")
        if target.exists() and not target.is_file():  # /dev/null would be replaced by a file
            raise BadFile(f"{target}: is not a regular file; name another output")
        if target.suffix != _WEIGHTS:
            raise BadFile(f"{target}: what is written is a safetensors file: name it {target.name}{_WEIGHTS}")
    for source in map(Path, inputs):
        _refuse_input(target, source)
    if folder and target.is_dir() and not any(target.iterdir()):
        return target
    if target.exists() and not force:
        raise BadFile(f"{target}: exists; force=True (command line: --force) replaces it")
    if folder and target.exists() and not _ours(target):
        raise BadFile(f"{target}: exists, and lyc-fx did not write all that is in it; name another output")
    return target


def _ours(folder: Path) -> bool:
    """Whether all weights in a folder were folded by lyc-fx, or it holds PEFT adapters and nothing beside them."""
    files = [each for each in folder.rglob("*") if not each.is_dir()] if folder.is_dir() else []
    weights = [each for each in files if each.suffix == _WEIGHTS]
    return bool(weights) and ({each.name for each in files} <= PEFT_FILES or all(map(_folded, weights)))


def _folded(file: Path) -> bool:
    try:
        with safe_open(file, "numpy") as source:
            return FOLD in (source.metadata() or {})
    except (OSError, SafetensorError):  # what we wrote can be read
        return False


def _refuse_input(target: Path, source: Path) -> None:
    if target.exists() and source.exists() and os.path.samefile(target, source):
        raise BadFile(f"{target}: is an input as well as the output; name another output")
    own, other = target.resolve(), source.resolve()
    if source.is_dir() and other in own.parents:
        raise BadFile(f"{target}: lies in {source}, which is an input; name another output")
    if target.is_dir() and own in other.parents:
        raise BadFile(f"{target}: holds {source}, which is an input; name another output")


def move_folder(work: Path, target: Path) -> None:
    """Give a finished folder its name. What had that name is removed once the new one is there. Raises OSError."""
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
