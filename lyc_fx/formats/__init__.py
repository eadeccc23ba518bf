"""The adapter file formats, one per file, and `load`, which tells them apart key by key."""

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.container import read_tensors
from lyc_fx.formats.diffusers import Diffusers
from lyc_fx.formats.directory import configuration, tensors_of
from lyc_fx.formats.entries import entries
from lyc_fx.formats.format import Format, Source
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.formats.peft import Peft

__all__ = ["FORMATS", "Format", "load"]

FORMATS: tuple[Format, ...] = (Peft(), Diffusers(), Lycoris())
"""In the order in which they are asked whether a key is theirs"""


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor], *, config: Mapping[str, Any] | None = None
) -> AdapterSet:
    """The adapters of a safetensors file, of a PEFT directory, or of a dict of tensors with the keys of such a file.

    `config` is PEFT's configuration, for a dict; beside a file it is found by itself. One file may mix formats.
    Raises BadFile where the file cannot be read, and BadAdapter where it is no adapter, or where an adapter in
    it is incomplete or not finite; the error lists every module that is wrong.
    """
    if isinstance(source, Mapping):
        odd = [repr(k) for k, v in source.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        if odd:
            raise BadAdapter(
                f"<tensors>: {', '.join(odd[:3])}: every key must be a text, and every value a torch.Tensor"
            )
        tensors = dict(source)
        said = Source("<tensors>", frozenset(source), shapes=_shapes(tensors), config=config)
    else:
        path = tensors_of(Path(source))
        tensors, metadata = read_tensors(path)
        beside = config or configuration(path)
        said = Source(str(path), frozenset(tensors), metadata, _shapes(tensors), beside)
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    formats: dict[str, Format] = {}
    unread = []
    for key in tensors:
        found = next(((f, parts) for f in FORMATS if (parts := f.parse(key, said)) is not None), None)
        if found is None:
            unread.append(key)
            continue
        (module, suffix), format_ = found[1], found[0]
        modules[module][suffix] = key
        if module not in formats or suffix != "alpha":
            formats[module] = format_
    if not modules:
        sample = ", ".join(sorted(tensors)[:3]) or "it holds no tensor"
        known = ", ".join(format_.name for format_ in FORMATS)
        raise BadAdapter(
            f"{said.name}: none of its {len(tensors)} keys is of a known adapter format ({known}): {sample}"
        )
    made, faults = [], []
    for module, keys in modules.items():
        try:
            group = formats[module].complete(module, {suffix: tensors[key] for suffix, key in keys.items()}, said)
            first = next(iter(keys.values()))
            made += entries(module, group, {suffix: keys.get(suffix, first) for suffix in group})
        except BadAdapter as error:
            faults.append(f"  {module}: {error}")
    if faults:
        raise BadAdapter("\n".join([f"{said.name}: {len(faults)} modules cannot be used:", *faults]))
    return AdapterSet(tuple(made), said.name, dict(said.metadata), tuple(unread))


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
