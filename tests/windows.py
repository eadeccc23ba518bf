"""What lyc-fx does with files, done as Windows lets it: `python windows.py GIVEN OUT`.

This is an imitation on another system. It takes away what Windows has not, and refuses what Windows refuses: opening a
folder, syncing what is open for reading only, and renaming or removing what is open or mapped.
"""

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ABSENT = ("preadv", "pwrite", "posix_fallocate", "posix_fadvise", "fdatasync", "sched_getaffinity", "O_DIRECT")


def imitate() -> None:
    import fcntl

    for name in ABSENT:
        if hasattr(os, name):
            delattr(os, name)
    sys.modules["fcntl"] = None  # type: ignore[assignment]
    shutil._use_fd_functions = False  # type: ignore[attr-defined]  # so that rmtree goes by paths
    opened, synced = os.open, os.fsync

    def opening(path: Any, *rest: Any, **more: Any) -> int:
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *rest, **more)

    def syncing(file: int) -> None:
        if fcntl.fcntl(file, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        synced(file)

    os.open, os.fsync = opening, syncing  # type: ignore[assignment]
    for name in ("replace", "rename", "unlink", "remove"):
        setattr(os, name, _unless_in_use(getattr(os, name)))


def _unless_in_use(call: Callable[..., None]) -> Callable[..., None]:
    def checked(*paths: Any, **more: Any) -> None:
        if sys._getframe(1).f_code.co_filename != tempfile.__file__:  # which has another way on Windows
            for path in paths:
                if os.path.isdir(paths[-1]) or (used := _in_use(os.path.realpath(path))):
                    raise PermissionError(13, "The process cannot access the file", str(path), None, used)
        call(*paths, **more)

    return checked


def _in_use(path: str) -> str | None:
    files = [os.path.realpath(f"/proc/self/fd/{each}") for each in os.listdir("/proc/self/fd")]
    mapped = [line.split(maxsplit=5)[5:] for line in Path("/proc/self/maps").read_text().splitlines()]
    files += [each[0] for each in mapped if each]
    return next((each for each in files if each == path or each.startswith(f"{path}{os.sep}")), None)


def work(given: Path, out: Path) -> None:
    """Fold a file and a folder, merge, live, capture, export, convert, load."""
    import torch

    import lyc_fx

    adapter, one = given / "adapter.safetensors", given / "one.safetensors"
    lyc_fx.fold_checkpoint(one, adapter, out / "one.safetensors", strict=False, verify=True)
    lyc_fx.fold_checkpoint(one, adapter, out / "one.safetensors", 0.5, strict=False)  # over the one before
    for strength in (1.0, 0.5):
        lyc_fx.fold_checkpoint(
            given / "model", adapter, out / "model", strength, dtype=torch.float16, resume=True, force=True
        )
    model = torch.nn.Sequential(torch.nn.Linear(6, 15), torch.nn.Linear(15, 4))
    state = lyc_fx.load(adapter), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=state[1]))
    program = lyc_fx.capture(model, (torch.zeros(2, 6),))
    lyc_fx.export(lyc_fx.fold(lyc_fx.splice(program, state[0])), out / "exported.safetensors")
    live = lyc_fx.live(model, keep="disk")
    live.set({adapter: 0.5})
    live.restore()
    lyc_fx.merge(model, adapter)
    lyc_fx.export(lyc_fx.capture(model, (torch.zeros(2, 6),)), out / "merged.safetensors")
    for _ in range(2):
        lyc_fx.convert(adapter, "peft", like=model).save(out / "peft", force=True)
    assert len(lyc_fx.load(out / "peft")) == len(state[0])


if __name__ == "__main__":
    imitate()
    given, out = map(Path, sys.argv[1:])
    work(given, out)
    from lyc_fx.cli import main
    from lyc_fx.storage import system

    assert system.fcntl is None and not hasattr(os, "preadv")
    sys.argv = ["lyc-fx", "fold", str(given / "model"), str(given / "adapter.safetensors"), "-o", str(out / "line")]
    main()
