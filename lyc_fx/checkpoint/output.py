"""Writing the output: a single file, or a folder that appears under its name only when it is complete."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lyc_fx.checkpoint.fold import Fold
from lyc_fx.checkpoint.new_tensors import update_config
from lyc_fx.checkpoint.ranks import Ranks, join_ranks
from lyc_fx.checkpoint.shard_effects import load_effects, remove_effects, save_effects
from lyc_fx.checkpoint.ties import untie_config
from lyc_fx.checkpoint.workers import Progress
from lyc_fx.errors import BadFile
from lyc_fx.storage.files import replacing, umask, unique
from lyc_fx.storage.may_overwrite import Path_, free, move_folder
from lyc_fx.storage.system import locked, sync_path

_FINGERPRINT = ".fold.json"
_DTYPES = ("dtype", "torch_dtype")
"""The keys of transformers' configurations that hold the dtype of a model's weights"""


def write_output(
    path: Path_, fold: Fold, inputs: Iterable[Path_], *, resume: bool, force: bool, progress: Progress
) -> None:
    """Write the output of a fold to `path`.

    Under torchrun every rank calls this; if one fails, all fail and nothing is left behind. An existing file is
    replaced, an existing folder only with `force`. With `resume`, finished shards of an interrupted run are reused, and
    are kept if this run is interrupted. Raises BadFile if the path cannot be written or is one of the `inputs`, and
    BadAdapter, before the output gets its name, if too little of the changes is left after rounding.
    """
    with join_ranks() as ranks:
        if not fold.base.folder:
            if resume:
                raise BadFile(
                    f"{path}: resume=True (command line: --resume) works only for folders: a single file is always "
                    "written from the start"
                )
            with ranks.together():
                target = free(path, inputs, folder=False, force=True)
                if ranks.first:
                    with replacing(target) as part:
                        fold.write(fold.base.parts[0], part, progress)
                        fold.refuse_rounded_away()
            return
        with ranks.together():
            target = free(path, inputs, folder=True, force=force)
        _write_folder(target, fold, ranks, resume=resume, progress=progress)


def _write_folder(target: Path, fold: Fold, ranks: Ranks, *, resume: bool, progress: Progress) -> None:
    work = Path(ranks.broadcast(lambda: str(_workspace(target, resume=resume))))
    done, parts, effects = False, fold.base.parts, fold.merger.effects
    try:
        with ranks.together():
            if ranks.first:
                _prepare(work, target, _fingerprint(fold), resume=resume)
        with ranks.together(), _lock(work, alone=resume and ranks.first):
            for part in ranks.share(parts, lambda p: p.layout.bytes):
                shard = work / part.inside
                if shard.exists():  # complete: a shard gets this name only when it is
                    progress(part.prefix, part.layout.bytes)
                    continue
                shard.parent.mkdir(parents=True, exist_ok=True)
                known = set(effects)
                with replacing(shard) as file:
                    fold.write(part, file, progress)
                    save_effects(work, parts.index(part), {n: e for n, e in effects.items() if n not in known})
        with ranks.together():
            effects |= load_effects(work, len(parts))
            fold.refuse_rounded_away()
        with ranks.together():
            if ranks.first:
                remove_effects(work, len(parts))
                _copy_other_files(fold, work)
                (work / _FINGERPRINT).unlink()
                _move_into_place(work, target)
        done = True
    finally:
        if ranks.first and not done and not resume:
            shutil.rmtree(work, ignore_errors=True)


def _workspace(target: Path, *, resume: bool) -> Path:
    """Return the folder that is renamed to the output at the end: a new one, or with `resume` that of the last run."""
    return target.absolute().with_name(f".{target.name[:40]}.resume") if resume else unique(target)


def _prepare(work: Path, target: Path, fingerprint: str, *, resume: bool) -> None:
    try:
        work.mkdir(0o700, exist_ok=resume)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror}") from error
    mark = work / _FINGERPRINT
    if mark.exists() and mark.read_text("utf-8") != fingerprint:
        raise BadFile(f"{work}: holds another, unfinished fold; remove this folder, or finish that fold first")
    mark.write_text(fingerprint, "utf-8")


def _fingerprint(fold: Fold) -> str:
    """Return a text that is the same for two runs exactly if one may resume the other."""
    parts = [
        (
            str(part.inside),
            part.path.stat().st_size,
            part.path.stat().st_mtime_ns,
            hashlib.sha256(part.layout.header).hexdigest(),
        )
        for part in fold.base.parts
    ]
    transposed = [name for name, weight in sorted(fold.merger.weights.items()) if weight.transposed]
    merger = fold.merger
    return json.dumps(
        [
            fold.provenance.entry,
            sorted(merger.binding.targets),
            transposed,
            str(fold.dtype),
            str(merger.compute),
            merger.seed,
            parts,
        ]
    )


def _copy_other_files(fold: Fold, work: Path) -> None:
    """Copy configurations, tokenizers and indices, updating those whose content the fold changes."""
    for inside in fold.base.other_files:
        (work / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fold.base.root / inside, work / inside)
        if inside.name.endswith(".safetensors.index.json") and (
            fold.dtype is not None or fold.untied or fold.new_tensors
        ):
            _rewrite_index(work / inside, fold, inside.parent)
        untied = inside in {tie.config for tie in fold.untied}
        if inside.name == "config.json" and (untied or fold.new_tensors or fold.dtype is not None):
            config = _read_json(work / inside)
            config = untie_config(config) if untied else config
            prefix = ".".join((*inside.parent.parts, ""))
            own = {n.removeprefix(prefix): g for n, g in fold.new_tensors.items() if n.startswith(prefix)}
            config = update_config(config, own) if own else config
            config = config if fold.dtype is None else with_dtype(config, fold.dtype)
            _write_json(work / inside, config)


def with_dtype(config: Any, dtype: torch.dtype) -> Any:
    """Return a configuration of transformers with every dtype entry, nested ones included, set to `dtype`."""
    if not isinstance(config, dict):
        return config
    name = str(dtype).removeprefix("torch.")
    return {k: name if k in _DTYPES and isinstance(v, str) else with_dtype(v, dtype) for k, v in config.items()}


def _rewrite_index(index: Path, fold: Fold, folder: Path) -> None:
    """Update an index of shards: which file has each tensor, and the total size."""
    content = _read_json(index)
    shards = [part for part in fold.base.parts if part.inside.parent == folder]
    total = sum(tensor.bytes for part in shards for tensor in fold.layout(part).tensors)
    content["metadata"] = {**content.get("metadata", {}), "total_size": total}
    content["weight_map"] = {t.name: part.inside.name for part in shards for t in part.layout.tensors}
    _write_json(index, content)


def _move_into_place(work: Path, target: Path) -> None:
    work.chmod(0o777 & ~umask())
    for remains in work.rglob(".*.part"):  # left by a run that was killed
        remains.unlink()
    for file in work.rglob("*"):
        if file.is_file():
            sync_path(file)
    try:
        move_folder(work, target)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror}") from error


@contextmanager
def _lock(work: Path, *, alone: bool) -> Iterator[None]:
    """Lock a folder, if `alone`, against other processes that resume the same fold.

    Raises BadFile if another process has the lock.
    """
    with ExitStack() as stack:
        try:
            if alone:
                stack.enter_context(locked(work / _FINGERPRINT))
        except BlockingIOError as error:
            raise BadFile(f"{work}: {error.strerror}") from error
        yield


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write_json(path: Path, content: Any) -> None:
    """Write JSON as UTF-8 with Unix line ends, so that the bytes are the same on every system."""
    path.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
