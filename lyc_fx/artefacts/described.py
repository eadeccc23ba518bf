"""The description in an exported file."""

import os
import zipfile
from pathlib import Path

from lyc_fx.errors import BadFile, Unsupported
from lyc_fx.exporting.manifest import NAME, Manifest
from lyc_fx.storage.files import path_of


def described(artefact: str | os.PathLike[str]) -> Manifest:
    """Read it. Raises BadFile for a file that cannot be read, or that lyc-fx has not exported."""
    path = path_of(artefact, "the exported program")
    if not path.exists():
        raise BadFile(f"{path}: no such file")
    return Manifest.read(_text(path), path)


def _text(path: Path) -> str:
    return _of_onnx(path) if path.suffix == ".onnx" else _of_archive(path)


def _of_archive(path: Path) -> str:
    """Format: a .pt2 is a zip archive, whose extra files are `<root>/extra/<name>`."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/{NAME}")]
            return archive.read(names[0]).decode() if names else ""
    except (zipfile.BadZipFile, OSError) as error:
        raise BadFile(f"{path}: is no exported program, or is cut off: {error}") from error


def _of_onnx(path: Path) -> str:
    try:
        import onnx
    except ImportError as error:
        raise Unsupported(f'{path}: needs the package onnx: pip install "lyc-fx[onnx]"') from error
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # of protobuf's own class
        raise BadFile(f"{path}: is no ONNX file, or is cut off: {error}") from error
    return next((entry.value for entry in model.metadata_props if entry.key == NAME), "")
