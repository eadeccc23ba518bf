"""Where the merged copies go: one file, or a folder that appears when it is whole."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from lyc_fx.errors import BadFile
from lyc_fx.files import replacing, umask, unique
from lyc_fx.folding.fold import Fold
from lyc_fx.folding.given import followed
from lyc_fx.folding.ranks import Ranks, ranks
from lyc_fx.folding.run import Progress
from lyc_fx.folding.ties import untied_config
from lyc_fx.outputs import Path_, free, move_folder
from lyc_fx.system import held, sync_path

_FINGERPRINT = ".fold.json"
_DTYPES = ("dtype", "torch_dtype")
"""What transformers calls the dtype of a model's weights"""


def written_to(
    path: Path_, fold: Fold, inputs: Iterable[Path_], *, resume: bool, force: bool, progress: Progress
) -> None:
    """Write a fold. Under torchrun every rank calls this; when one fails, all do, and nothing is left.

    A file of that name is replaced; a folder only with `force`. Raises BadFile where the path cannot be written, or is
    an input.
    """
    with ranks() as all_:
        if not fold.base.folder:
            if resume:
                raise BadFile("--resume is for folders of shards: a single file is written anew")
            with all_.together():
                target = free(path, inputs, folder=False, force=True)
                if all_.first:
                    with replacing(target) as part:
                        fold.write(fold.base.parts[0], part, progress)
            return
        with all_.together():
            target = free(path, inputs, folder=True, force=force)
        _folder(target, fold, all_, resume=resume, progress=progress)


def _folder(target: Path, fold: Fold, all_: Ranks, *, resume: bool, progress: Progress) -> None:
    work = Path(all_.said(lambda: str(_workspace(target, resume=resume))))
    done = False
    try:
        with all_.together():
            if all_.first:
                _begin(work, target, _fingerprint(fold), resume=resume)
        with all_.together(), _locked(work, alone=resume and all_.first):
            for part in all_.share(fold.base.parts, lambda p: p.layout.bytes):
                shard = work / part.inside
                if shard.exists():  # of the run that is resumed: it was renamed when it was whole
                    progress(part.prefix, part.layout.bytes)
                    continue
                shard.parent.mkdir(parents=True, exist_ok=True)
                with replacing(shard) as file:
                    fold.write(part, file, progress)
        with all_.together():
            if all_.first:
                _carry(fold, work)
                (work / _FINGERPRINT).unlink()
                _finish(work, target)
        done = True
    finally:
        if all_.first and not done and not resume:
            shutil.rmtree(work, ignore_errors=True)


def _workspace(target: Path, *, resume: bool) -> Path:
    """The folder that will become the output: one of its own, or that of the run that is resumed."""
    return target.absolute().with_name(f".{target.name[:40]}.resume") if resume else unique(target)


def _begin(work: Path, target: Path, fingerprint: str, *, resume: bool) -> None:
    try:
        work.mkdir(0o700, exist_ok=resume)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror}") from error
    mark = work / _FINGERPRINT
    if mark.exists() and mark.read_text("utf-8") != fingerprint:
        raise BadFile(f"{work}: holds another fold that was not finished; remove it, or finish that one first")
    mark.write_text(fingerprint, "utf-8")


def _fingerprint(fold: Fold) -> str:
    """What two runs must have in common to be one."""
    parts = [
        (
            str(part.inside),
            part.path.stat().st_size,
            part.path.stat().st_mtime_ns,
            hashlib.sha256(part.layout.header).hexdigest(),
        )
        for part in fold.base.parts
    ]
    turned = [name for name, weight in sorted(fold.merger.weights.items()) if weight.transposed]
    merger = fold.merger
    return json.dumps(
        [
            fold.provenance.entry,
            sorted(merger.binding.targets),
            turned,
            str(fold.dtype),
            str(merger.compute),
            merger.seed,
            parts,
        ]
    )


def _carry(fold: Fold, work: Path) -> None:
    """Configurations, tokenizers and indices."""
    for inside in fold.base.carried:
        (work / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(fold.base.root / inside, work / inside)
        if inside.name.endswith(".safetensors.index.json") and (fold.dtype is not None or fold.untied or fold.given):
            _index(work / inside, fold, inside.parent)
        untied = inside in {tie.config for tie in fold.untied}
        if inside.name == "config.json" and (untied or fold.given or fold.dtype is not None):
            config = _json(work / inside)
            config = untied_config(config) if untied else config
            prefix = ".".join((*inside.parent.parts, ""))
            own = {n.removeprefix(prefix): g for n, g in fold.given.items() if n.startswith(prefix)}
            config = followed(config, own) if own else config
            config = config if fold.dtype is None else with_dtype(config, fold.dtype)
            _write(work / inside, config)


def with_dtype(config: Any, dtype: torch.dtype) -> Any:
    """A configuration of transformers in which what it says of the weights' dtype, also of a part, is this one."""
    if not isinstance(config, dict):
        return config
    name = str(dtype).removeprefix("torch.")
    return {k: name if k in _DTYPES and isinstance(v, str) else with_dtype(v, dtype) for k, v in config.items()}


def _index(index: Path, fold: Fold, folder: Path) -> None:
    """An index says where its tensors are, and how many bytes they have."""
    content = _json(index)
    shards = [part for part in fold.base.parts if part.inside.parent == folder]
    total = sum(tensor.bytes for part in shards for tensor in fold.layout(part).tensors)
    content["metadata"] = {**content.get("metadata", {}), "total_size": total}
    content["weight_map"] = {t.name: part.inside.name for part in shards for t in part.layout.tensors}
    _write(index, content)


def _finish(work: Path, target: Path) -> None:
    work.chmod(0o777 & ~umask())
    for remains in work.rglob(".*.part"):  # of a run that was killed
        remains.unlink()
    for file in work.rglob("*"):
        if file.is_file():
            sync_path(file)
    try:
        move_folder(work, target)
    except OSError as error:
        raise BadFile(f"{target}: cannot be written: {error.strerror}") from error


@contextmanager
def _locked(work: Path, *, alone: bool) -> Iterator[None]:
    """Hold a folder against other processes that would resume the same fold. Raises BadFile where one has it."""
    with ExitStack() as stack:
        try:
            if alone:
                stack.enter_context(held(work / _FINGERPRINT))
        except BlockingIOError as error:
            raise BadFile(f"{work}: {error.strerror}") from error
        yield


def _json(path: Path) -> Any:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, content: Any) -> None:
    """The same bytes on every system."""
    path.write_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
