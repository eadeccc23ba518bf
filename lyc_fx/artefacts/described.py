"""The description in an exported file."""

import os
import zipfile
from pathlib import Path

from lyc_fx.errors import BadFile
from lyc_fx.exporting.manifest import NAME, Manifest
from lyc_fx.storage.files import path_of


def described(artefact: str | os.PathLike[str]) -> Manifest:
    """Read it. Raises BadFile for a file that cannot be read, or that lyc-fx has not exported."""
    path = path_of(artefact, "the exported program")
    if not path.exists():
        raise BadFile(f"{path}: no such file")
    return Manifest.read(_text(path), path)


def _text(path: Path) -> str:
    """Format: a .pt2 is a zip archive, whose extra files are `<root>/extra/<name>`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{NAME}")]
            return archive.read(names[0]).decode() if names else ""
    except (zipfile.BadZipFile, OSError) as error:
        raise BadFile(f"{path}: is no exported program, or is cut off: {error}") from error
