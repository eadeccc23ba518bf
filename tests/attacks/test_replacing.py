"""A signal that comes at any moment of `replacing` leaves the old file or the new one, and nothing else."""

import contextlib
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from lyc_fx.errors import BadFile
from lyc_fx.storage import files, system
from lyc_fx.storage.files import replacing

WHERE = {files.__file__, system.__file__, contextlib.__file__, __file__}
MANY = 500


class Interrupted:
    """Raises KeyboardInterrupt before one of the lines of the code here, in `files` and in `contextlib`."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, frame: FrameType, event: str, _: Any) -> "Interrupted | None":
        if frame.f_code.co_filename not in WHERE or frame.f_code.co_name == "test_any_moment":
            return None
        self.left -= event == "line"
        if self.left == 0 and event == "line":
            sys.settrace(None)
            raise KeyboardInterrupt
        return self


def write(target: Path) -> None:
    with replacing(target) as part:
        part.write_text("new")
        part.write_text("newer")


def test_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # it takes long on some disks
    target = tmp_path / "out"
    ends = []
    for moment in range(1, MANY):
        target.write_text("old")
        interrupted = Interrupted(moment)
        sys.settrace(interrupted)
        try:
            write(target)
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert os.listdir(tmp_path) == ["out"], moment
        ends.append(target.read_text())
        if interrupted.left > 0:
            break
    assert interrupted.left > 0 and len(ends) > 20
    assert set(ends) == {"old", "newer"} and ends == sorted(ends, reverse=True)


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(BadFile, match=r"file/out: cannot be written: Not a directory"):
        write(tmp_path / "file" / "out")
