"""Writing the end of a `.pt2` whose weights have changed: checksums, texts, and the directory."""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

from lyc_fx.checkpoint.programs.archive import start_in
from lyc_fx.checkpoint.programs.crc import Crc, joined
from lyc_fx.checkpoint.programs.program import TEXTS, Program
from lyc_fx.errors import BadFile

_SIGNED = b"PK\x07\x08"
"""What may be before the CRC-32 behind an entry"""
_COPIED = 1 << 24


def tail_of(program: Program) -> int:
    """The byte from which an archive with other texts is written anew: what is before keeps its place."""
    with ZipFile(program.path) as archive:
        last = max((stop for _, _, stop in (each.range for each in program.held.values())), default=0)
        texts = [each.header_offset for each in archive.infolist() if _text(each.filename) is not None]
        return min((start for start in texts if start >= last), default=archive.start_dir)


def _text(name: str) -> str | None:
    return next((text for text in TEXTS if name.endswith(f"/extra/{text}")), None)


def finish_archive(program: Program, part: Path, crcs: list[Crc], texts: Mapping[str, str]) -> None:
    """Write the end of a copy that is whole up to `tail_of`: the texts, and what is behind them; and the CRCs.

    Raises BadFile for an entry of the original that is damaged.
    """
    try:
        cut = tail_of(program)
        with ZipFile(program.path) as old, program.path.open("rb") as source, part.open("r+b") as file:
            entries = old.infolist()
            root = entries[0].filename.partition("/")[0]
            kept = [each for each in entries if each.header_offset < cut and _text(each.filename) is None]
            for each in kept:
                start = start_in(source, each)
                own = [crc for crc in crcs if start <= crc.start < start + each.file_size]
                if own:
                    _put_crc(file, source, each, start, _crc(source, own, start, start + each.file_size))
            file.seek(cut)
            with ZipFile(file, "w") as new:  # its directory has the entries before it too
                new.filelist.extend(kept)
                new.NameToInfo.update({each.filename: each for each in kept})
                for name, text in texts.items():
                    new.writestr(ZipInfo(f"{root}/extra/{name}"), text)  # a ZipInfo: without the time, for equal bytes
                for each in entries:
                    if each.header_offset >= cut and _text(each.filename) is None:
                        new.writestr(ZipInfo(each.filename), old.read(each))
            file.truncate()
    except zipfile.BadZipFile as error:
        raise BadFile(f"{program.path}: is damaged: {error}") from error


def _put_crc(file: Any, source: Any, entry: ZipInfo, start: int, crc: int) -> None:
    """Write the CRC-32 of an entry to where it is: into its header, or behind its content; and into `entry`."""
    entry.CRC = crc
    place = entry.header_offset + 14
    if entry.flag_bits & 8:
        place = start + entry.compress_size
        source.seek(place)
        place += 4 if source.read(4) == _SIGNED else 0
    file.seek(place)
    file.write(crc.to_bytes(4, "little"))


def _crc(source: Any, parts: list[Crc], start: int, stop: int) -> int:
    """The CRC-32 of changed bytes, and of those between them, which are as in the source."""
    total = 0
    for part in sorted(parts):
        for size, crc in _crcs(source, start, part.start):
            total = joined(total, crc, size)
        total = joined(total, part.crc, part.size)
        start = part.start + part.size
    for size, crc in _crcs(source, start, stop):
        total = joined(total, crc, size)
    return total


def _crcs(source: Any, start: int, stop: int) -> Iterator[tuple[int, int]]:
    source.seek(start, os.SEEK_SET)
    for first in range(start, stop, _COPIED):
        data = source.read(min(_COPIED, stop - first))
        yield len(data), zlib.crc32(data)
