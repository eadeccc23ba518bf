"""The adapter file formats, one per file, and `load`, which finds the one that a file is in."""

import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.container import read_tensors
from lyc_fx.formats.format import Format
from lyc_fx.formats.lycoris import Lycoris

__all__ = ["FORMATS", "Format", "load"]

FORMATS: tuple[Format, ...] = (Lycoris(),)


def load(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> AdapterSet:
    """The adapters of a safetensors file, or of a dict of tensors with the keys of such a file.

    Raises BadFile where the file cannot be read, and BadAdapter where it is no adapter, or where an adapter in
    it is incomplete or not finite; the error lists every module that is wrong.
    """
    if isinstance(source, Mapping):
        tensors, metadata, name = dict(source), dict[str, str](), "<tensors>"
    else:
        tensors, metadata = read_tensors(source)
        name = str(Path(source))
    known = [sum(map(format.recognises, tensors)) for format in FORMATS]
    if not any(known):
        sample = ", ".join(sorted(tensors)[:3]) or "it holds no tensor"
        raise BadAdapter(
            f"{name}: none of its {len(tensors)} keys is of a known adapter format "
            f"({', '.join(f.name for f in FORMATS)}): {sample}"
        )
    return FORMATS[known.index(max(known))].read(tensors, metadata, name)
