"""`.pt2`: a `torch.export` program. `torch.export.load` reads it."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch.export import ExportedProgram

from lyc_fx.errors import Unsupported
from lyc_fx.exporting.manifest import NAME, Manifest


def write(exported: ExportedProgram, file: Path, manifest: Manifest, said: Mapping[str, str], path: object) -> None:
    """Write a program, with the extra files `manifest.json` and, if something is said, `metadata.json`.

    Raises Unsupported, which names `path`, for a program that torch cannot store.
    """
    extra = {NAME: manifest.text()} | ({"metadata.json": json.dumps(said)} if said else {})
    try:
        with file.open("wb") as out:
            torch.export.save(exported, out, extra_files=extra)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Unsupported(f"{path}: torch.export cannot store this program: {reason}") from error
