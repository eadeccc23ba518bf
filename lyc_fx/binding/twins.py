"""Models that have a fused projection and also its members, as after diffusers' `fuse_qkv_projections`.

That adds `to_qkv` to an attention layer that keeps `to_q`, `to_k` and `to_v`, and may compute with either. So an
adapter for one of them must also change the other.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.binding.fitting import Weight
from lyc_fx.binding.part import part_of
from lyc_fx.naming import FUSIONS, Piece

Twins = Mapping[str, tuple[Piece, ...]]
"""From a parameter to the pieces that hold the same rows: a part of the fused weight, or all members"""


def twins(tensors: Mapping[str, Tensor]) -> Twins:
    """Find the fused weights and biases whose values are their members stacked along the rows."""
    found: dict[str, tuple[Piece, ...]] = {}
    for fused, members in _beside(tensors):
        parts = [tensors[member] for member in members]
        if any(part.is_meta or not part.dim() for part in parts) or tensors[fused].is_meta:
            continue
        if tensors[fused].shape != torch.Size((sum(map(len, parts)), *parts[0].shape[1:])):
            continue
        if not torch.equal(tensors[fused], torch.cat([part.to(tensors[fused].device) for part in parts])):
            continue  # independent weights that only have such names
        start, pieces = 0, []
        for member, part in zip(members, parts, strict=True):
            rows = (start, start + len(part))
            pieces.append(Piece(member, None, rows))
            found[member] = (Piece(fused, rows),)
            start = rows[1]
        found[fused] = tuple(pieces)
    return found


def _beside(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, list[str]]]:
    """Yield each fused parameter whose members the model has too, with the members."""
    for name in tensors:
        module, _, leaf = name.rpartition(".")
        for whole, members in FUSIONS:
            if leaf in ("weight", "bias") and f".{module}".endswith(f".{whole}"):
                head = module.removesuffix(whole)
                inside = [f"{head}{member}.{leaf}" for member in members]
                if all(member in tensors for member in inside):
                    yield name, inside


def mirrored(
    piece: Piece, adapter: Adapter, weights: Mapping[str, Weight], same: Twins
) -> Iterator[tuple[Piece, Adapter]]:
    """Yield the piece and its adapter, and those for every other place that holds the same rows."""
    yield piece, adapter
    for twin in same.get(piece.parameter, ()) if piece.rows is None else ():
        shape = weights[piece.parameter].logical
        yield twin, part_of(adapter, twin.source_rows, shape)
