"""Packed adapters, read back and checked against the program that they are for."""

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lyc_fx.artefacts.pack import FORMAT, Packed
from lyc_fx.errors import BadAdapter, BadFile
from lyc_fx.exporting.form import Form
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.storage.container import read_tensors


def read_packed(source: Any) -> Packed | None:
    """What `pack` wrote to a file; None for anything else. Raises BadFile for a file that cannot be read."""
    if not isinstance(source, (str, os.PathLike)) or not Path(source).is_file():
        return None
    tensors, metadata = read_tensors(Path(source))
    if FORMAT not in metadata:
        return None
    try:
        said = json.loads(metadata[FORMAT])
        return Packed(tensors, torch.tensor([float(each) for each in said["strengths"]]), None, str(said["form"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BadFile(f"{source}: its metadata {FORMAT} cannot be read: pack the adapters again") from error


def for_slots(packed: Packed, manifest: Manifest, path: str) -> dict[str, Tensor]:
    """Copies of the tensors, which nobody else can change. Raises BadAdapter unless they are those of this program."""
    if not manifest.form:
        raise BadAdapter(f"{path}: is a program of kind {manifest.kind!r}, which takes no adapters")
    if packed.form != manifest.form_digest:
        raise BadAdapter(f"{path}: the adapters were packed for another program: pack them for this one")
    form = Form.read(manifest.form)
    wanted = {
        slot.inputs[field]: (factor, slot.ranks[field])
        for slot in form.slots
        for field, factor in slot.adapter.factors().items()
    }
    vectors = {"shares": len(form.slots)} | ({"alphas": form.alphas} if form.alphas else {})
    if packed.tensors.keys() != wanted.keys() | vectors.keys():
        odd = sorted(packed.tensors.keys() ^ (wanted.keys() | vectors.keys()))
        raise BadAdapter(f"{path}: the packed adapters lack, or have besides, {', '.join(odd[:3])}: pack them again")
    for name, tensor in packed.tensors.items():
        like, free = wanted.get(name, (None, ()))
        shape = (vectors[name],) if like is None else tuple(like.shape)
        dtype = torch.float64 if like is None else like.dtype
        fits = tensor.dim() == len(shape) and all(
            size == there or at in free for at, (size, there) in enumerate(zip(tensor.shape, shape, strict=True))
        )
        if not fits or tensor.dtype != dtype:
            raise BadAdapter(f"{path}: {name} is {tensor.dtype} {tuple(tensor.shape)}, the slot {dtype} {shape}")
        if not bool(tensor.isfinite().all()):
            raise BadAdapter(f"{path}: {name} holds NaN or infinity")
    copies = {name: tensor.detach().clone() for name, tensor in packed.tensors.items()}
    return {name: tensor.contiguous() for name, tensor in copies.items()}
