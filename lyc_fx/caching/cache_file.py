"""The file that keeps compiled code: a line with its name, a line of JSON, and a zip archive of a folder."""

import json
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import final

from lyc_fx.caching.origin import origin
from lyc_fx.errors import BadFile
from lyc_fx.storage.files import path_of, replacing

_NAME = b"lyc-fx compiled code 1\n"
_PASSING = (".lock", ".tmp", ".gch")
"""Suffixes of files that are of no use to another process"""


class CacheNotUsed(UserWarning):
    """Compiled code was not read or not kept: what is missing is compiled again."""


@final
@dataclass(frozen=True)
class CacheFile:
    """A file of compiled code, or the place for one."""

    path: Path

    @classmethod
    def at(cls, path: object) -> "CacheFile":
        """Raises BadFile for what exists and is no such file, and where there is no folder for it."""
        file = cls(path_of(path, "the cache"))
        if file.path.exists() and not (file.path.is_file() and _starts(file.path)):
            raise BadFile(f"{path}: is no file of lyc-fx's compiled code, and is left as it is: name another one")
        if not file.path.parent.is_dir():
            raise BadFile(f"{path}: there is no folder {file.path.parent}")
        return file

    def unpack(self, folder: Path) -> None:
        """Write what the file holds into a folder, apart from what is there; nothing of what cannot be used here.

        Warns with CacheNotUsed for a file that is damaged, or comes from another torch, Python or processor.
        """
        if not self.path.exists():
            return
        found, here = _contents(self.path.read_bytes()), origin()
        if found is None:
            self._warn("is damaged")
            return
        made, packed = found
        if made != here:
            others = ", ".join(
                f"{name} {made.get(name)} (here {here[name]})" for name in here if made.get(name) != here[name]
            )
            self._warn(f"was written with {others}")
            return
        with zipfile.ZipFile(BytesIO(packed)) as archive:
            archive.extractall(folder, [name for name in archive.namelist() if not (folder / name).exists()])

    def pack(self, folder: Path) -> None:
        """Replace the file by the contents of a folder, at once or not at all. Raises BadFile."""
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for each in kept(folder):
                archive.write(each, each.relative_to(folder))
        header = json.dumps({"sha256": sha256(packed.getbuffer()).hexdigest(), "origin": origin()})
        with replacing(self.path) as part:
            part.write_bytes(_NAME + header.encode() + b"\n" + packed.getbuffer())

    def _warn(self, why: str) -> None:
        text = f"{self.path}: {why}: what is needed is compiled again, and the file replaced"
        warnings.warn(text, CacheNotUsed, stacklevel=5)


def kept(folder: Path) -> Iterator[Path]:
    """The files in a folder that are of use to another process."""
    for each in sorted(folder.rglob("*")):
        if each.is_file() and each.suffix not in _PASSING:
            yield each


def _contents(data: bytes) -> tuple[dict[str, str], bytes] | None:
    """The origin, and the archive; None for damaged data."""
    line, _, packed = data.removeprefix(_NAME).partition(b"\n")
    try:
        header = json.loads(line)
        made, digest = dict(header["origin"]), header["sha256"]
    except (ValueError, TypeError, KeyError):
        return None
    return (made, packed) if sha256(packed).hexdigest() == digest else None


def _starts(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_NAME)) == _NAME
