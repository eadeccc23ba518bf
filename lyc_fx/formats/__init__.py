"""The adapter file formats, one per file, and `load`, which tells them apart key by key."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.errors import BadAdapter, BadModules, Unsupported, WrongArgument, counted, listing
from lyc_fx.extensions import Table, named, shown
from lyc_fx.formats.comfyui import Comfyui
from lyc_fx.formats.diffusers import Diffusers
from lyc_fx.formats.format import MARK, Contents, Format, Layout, Source
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.formats.nhwc import Nhwc, laid_out_so
from lyc_fx.formats.peft import Peft
from lyc_fx.formats.reading.directory import configuration, read_configuration, tensors_of
from lyc_fx.formats.reading.entries import entries
from lyc_fx.formats.reading.layouts import INNER
from lyc_fx.formats.reading.partial import not_understood
from lyc_fx.formats.save import save
from lyc_fx.formats.xlabs import XLabs
from lyc_fx.storage.container import read_tensors
from lyc_fx.storage.files import path_of

__all__ = ["FORMATS", "TABLE", "Contents", "Format", "formats", "load", "save", "writer"]

FORMATS: tuple[Format, ...] = (Peft(), XLabs(), Diffusers(), Nhwc(), Lycoris(), Comfyui())
"""In the order in which they are asked whether a key is theirs; of a module's formats the first one completes it"""
_ALSO: dict[str, Format] = {"kohya": Lycoris()}
"""Writers under further names: kohya's files differ from LyCORIS's in their modules' names alone"""
_NAMES = ("lycoris", "kohya", "peft", "diffusers", "comfyui")


def _check(format_: Format, others: tuple[Format, ...]) -> None:
    """Raise WrongArgument for a format without a name of its own, or that asks for names which nobody knows."""
    named(format_, others, reserved=tuple(_ALSO))
    if format_.names not in _NAMES:
        raise WrongArgument(f"{shown(format_)}: names is {format_.names!r}, not one of {', '.join(_NAMES)}")


TABLE: Table[Format] = Table("lyc_fx.formats", Format, FORMATS, _check)


def formats() -> tuple[Format, ...]:
    """`FORMATS`, and those from outside (`lyc_fx.register`), asked last: no known file is read otherwise."""
    return TABLE.all()


"""How many of a long list a message names"""


class AssumedScale(UserWarning):
    """Nothing says what the change of a file's adapters is multiplied by."""


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor],
    *,
    config: Mapping[str, Any] | str | os.PathLike[str] | None = None,
    layout: Layout | None = None,
    alpha: float | None = None,
) -> AdapterSet:
    """The adapters of a safetensors file, of a PEFT directory, or of a dict of tensors with the keys of such a file.

    `config` is PEFT's configuration (a mapping, or its file); beside a file of tensors it is found by itself. `alpha`
    is for modules of which nothing else says it: the scale is alpha / r, and without it 1, of which AssumedScale warns
    where PEFT wrote the keys. One file may mix formats.
    `layout` says how the factors under LyCORIS's keys lie; without it that follows from the metadata, or the shapes.
    Raises BadFile where the file cannot be read, and BadAdapter where it is no adapter, or where an adapter in
    it is incomplete or not finite: BadModules, which lists every module that is wrong, and has the `sound` rest.
    """
    given = config if config is None or isinstance(config, Mapping) else read_configuration(path_of(config, "config"))
    if isinstance(source, Mapping):
        odd = [repr(k) for k, v in source.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
        if odd:
            raise BadAdapter(
                f"<tensors>: {', '.join(odd[:3])}: every key must be a text, and every value a torch.Tensor"
            )
        tensors = dict(source)
        said = Source("<tensors>", frozenset(source), {}, given, layout, alpha, _shapes(tensors))
    else:
        path = tensors_of(path_of(source, "what to load"))
        tensors, metadata = read_tensors(path)
        beside = given or configuration(path)
        said = Source(str(path), frozenset(tensors), metadata, beside, layout, alpha, _shapes(tensors))
    modules: dict[str, dict[str, str]] = defaultdict(dict)
    every = formats()
    chosen: dict[str, Format] = {}
    shared: dict[str, str] = {}
    unread, faults = [], []
    for key in tensors:
        found = _meaning(key, said, every)
        if found is None:
            unread.append(key)
            continue
        format_, module, suffix = found
        if module is None:
            if (other := shared.setdefault(suffix, key)) != key:
                faults.append(f"  {other} and {key} are the same factor of all modules")
            continue
        if (other := modules[module].setdefault(suffix, key)) != key:
            faults.append(f"  {module}: {other} and {key} are the same factor")
        chosen[module] = min(format_, chosen.get(module, format_), key=every.index)
    if not modules:
        sample = ", ".join(sorted(tensors)[:3]) or "it holds no tensor"
        known = ", ".join(format_.name for format_ in every)
        model = any(key.endswith((".weight", ".bias")) for key in tensors)
        order = "; if this is the model, it comes first: lyc-fx fold BASE ADAPTER -o OUT" if model else ""
        raise BadAdapter(
            f"{said.name}: none of its keys ({len(tensors)}) is of a known adapter format ({known}): {sample}{order}"
        )
    groups = {module: {suffix: tensors[key] for suffix, key in keys.items()} for module, keys in modules.items()}
    if said.stated_layout is None:
        plain = {module: group for module, group in groups.items() if isinstance(chosen[module], Lycoris)}
        chosen |= dict.fromkeys(laid_out_so(plain), Nhwc())
    said = replace(said, shared={suffix: tensors[key] for suffix, key in shared.items()})
    made, common_keys = [], set[str]()
    beside = not_understood({module: list(keys.values()) for module, keys in modules.items()}, unread)
    for module, keys in modules.items():
        try:
            group = chosen[module].complete(module, groups[module], said)
            if alpha is not None and "alpha" not in group and any(factor in group for factor in INNER):
                group = {**group, "alpha": torch.tensor(float(alpha), dtype=torch.float64)}
            first = next(iter(keys.values()))
            read = entries(module, group, {suffix: keys.get(suffix, first) for suffix in group})
            also = [key for suffix, key in shared.items() if suffix in group]
            made += _with_all_keys(read, [*keys.values(), *also])
            common_keys.update(also)
        except BadAdapter as error:
            faults.append(f"  {module}: {error}")
    unread += [key for key in shared.values() if key not in common_keys]
    assumed = [m for m, f in chosen.items() if isinstance(f, Peft) and f.scale_unknown(groups[m], said)]
    if assumed:
        warnings.warn(
            f"{said.name}: no adapter_config.json and no alpha says the scale of its "
            f"{counted(len(assumed), 'adapter')}: it is taken to be 1, as in diffusers and ComfyUI; config= or alpha= "
            "(command line: --config, --alpha) says otherwise",
            AssumedScale,
            stacklevel=2,
        )
    made = [replace(entry, unread=beside.get(entry.module, ())) for entry in made]
    metadata = {key: text for key, text in said.metadata.items() if key != MARK}  # what is read has LyCORIS's layout
    task = said.config.get("task_type") if said.config else None
    sound = AdapterSet(tuple(made), said.name, metadata, tuple(unread), task if isinstance(task, str) else None)
    if faults:
        raise BadModules(listing(f"{said.name}: {counted(len(faults), 'module')} cannot be used:", faults), sound)
    return sound


def writer(name: str) -> Format:
    """The format that writes a convention. Raises Unsupported where there is none of this name."""
    known = {format_.name: format_ for format_ in formats()} | _ALSO
    if name not in known:
        raise Unsupported(f"there is no format {name!r}: use one of {', '.join(known)}")
    return known[name]


def _meaning(key: str, said: Source, every: tuple[Format, ...]) -> tuple[Format, str | None, str] | None:
    """The first format whose key this is, its module (None for a factor of all modules) and its suffix."""
    for format_ in every:
        if (common := format_.shared(key)) is not None:
            return format_, None, common
        if (parts := format_.parse(key, said)) is not None:
            return format_, *parts
    return None


def _with_all_keys(read: list[Entry], keys: Iterable[str]) -> list[Entry]:
    """The entries of a module, of which the first also has the keys that a format made other factors of."""
    known = {key for entry in read for key in entry.keys}
    first = replace(read[0], keys=(*read[0].keys, *(key for key in keys if key not in known)))
    return [replace(entry, keys=tuple(dict.fromkeys(entry.keys))) for entry in (first, *read[1:])]


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}
