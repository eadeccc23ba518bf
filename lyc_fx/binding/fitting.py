"""Fitting an adapter of a file to the rows of a model's weights that it changes, or saying why it does not fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.algorithms.experts import Experts
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.replace import Replace
from lyc_fx.binding.part import part_of
from lyc_fx.errors import BadAdapter
from lyc_fx.naming import Piece, Pieces, in_before_out, is_projection


@final
@dataclass(frozen=True)
class WeightNorm:
    """The names of the tensors from which weight norm computes a weight."""

    direction: str
    magnitude: str
    dim: int
    """The one dimension over which the norm is not taken; -1 for a norm over all"""


@final
@dataclass(frozen=True)
class Weight:
    """What must be known about a weight to bind adapters to it."""

    shape: tuple[int, ...]
    """As stored: `(out, in/groups, *kernel)`, unless one of the next two says otherwise"""
    dtype: torch.dtype
    transposed: bool = False
    """Whether it is stored as `(in, out)`, as in GPT-2's Conv1D"""
    of_transposed_conv: bool = False
    """Whether it is stored as `(in, out/groups, *kernel)`; which of the two sides an adapter calls `out` is unknown"""
    scale: str | None = None
    """The name of the tensor in whose units it is stored, if that is supported"""
    weight_norm: WeightNorm | None = None
    """The tensors it is computed from, if the checkpoint does not store it directly"""

    @property
    def height(self) -> int:
        """The number of rows as stored; a scalar has one."""
        return self.shape[0] if self.shape else 1

    @property
    def logical(self) -> tuple[int, ...]:
        """The shape as adapters see it, `(out, in, *kernel)`."""
        return self.shape[::-1] if self.transposed else self.shape


def placed(
    entry: Entry, found: list[Pieces], taken: Mapping[str, Sequence[tuple[Piece, Entry]]], weights: Mapping[str, Weight]
) -> list[tuple[Piece, Adapter]]:
    """Fit an entry of a file to the parameters that its name means.

    `found` is what `Names.find` returned for it: each item is one possible meaning. `taken` has, for each parameter,
    what other entries of the same file change.

    Returns pairs of a piece (rows of a parameter) and the adapter for exactly these rows. Raises BadAdapter if the name
    is ambiguous, or the adapter does not fit.
    """
    if len(found) > 1:
        meant = " or ".join("+".join(p.parameter for p in pieces) for pieces in found)
        raise BadAdapter(f"the name is ambiguous: it may mean {meant}; rename the key to the dotted path")
    pieces = found[0]
    for piece in pieces:
        weight = weights[piece.parameter]
        if not weight.dtype.is_floating_point:
            raise BadAdapter(f"{piece.parameter} is stored as {weight.dtype}; adapters need a floating-point weight")
        if (
            weight.dtype.itemsize == 1
            and weight.scale is None
            and (scale := scale_beside(piece.parameter, weights)) is not None
        ):
            raise BadAdapter(
                f"{piece.parameter} is stored as {weight.dtype} in units of {scale}, which is not supported here; "
                "merge into the checkpoint from before scaling"
            )
        for rival, other in taken.get(piece.parameter, ()):
            second = other.module == entry.module and type(other.adapter) is not type(entry.adapter)
            if _overlap(piece, rival) and not second:
                raise BadAdapter(f"{piece.parameter} is named twice in this file, also by {other.module}")
    shape = _shape(pieces, weights)
    if entry.shape not in (None, shape):
        raise BadAdapter(
            f"is for {' + '.join(piece.parameter for piece in pieces)} padded with zeros from {shape} to {entry.shape} "
            "(reshape_weight); lyc-fx does not change a model's shapes: use a base model of that shape"
        )
    if (
        weights[pieces[0].parameter].of_transposed_conv
        and shape[0] == shape[1]
        and not isinstance(entry.adapter, (Full, Replace))
    ):
        raise BadAdapter(
            f"{pieces[0].parameter} {shape} belongs to a transposed convolution with as many inputs as outputs, so "
            "the shapes do not show whether the adapter is for the stored order, (in, out, *kernel), or the other one: "
            "give the whole change in the stored order, under the key .diff"
        )
    oriented = _oriented(entry.adapter, pieces[0].parameter, shape, weights)
    try:
        oriented.fit(shape)
    except BadAdapter as error:
        turned = shape[::-1]
        fits_transposed = len(pieces) == 1 and len(shape) == 2 and _fits(entry.adapter.oriented(turned, False), turned)
        hint = "; it would fit the transpose: is the weight stored as (in, out)? Then use --transposed"
        name = " + ".join(piece.parameter for piece in pieces)
        raise BadAdapter(f"does not fit {name} {shape}: {error}{hint if fits_transposed else ''}") from error
    return [(piece, part_of(oriented, piece.source_rows, shape)) for piece in pieces]


def _oriented(adapter: Adapter, name: str, shape: tuple[int, ...], weights: Mapping[str, Weight]) -> Adapter:
    """Return the adapter for the weight as `(out, in)`, where its factors depend on the stored order."""
    if isinstance(adapter, Experts):
        shapes = {each: weight.shape for each, weight in weights.items()}
        return replace(adapter, turned=True if in_before_out(name, shapes) else None)
    transposed = weights[name].transposed and not is_projection(name, weights)
    return adapter.oriented(shape[::-1] if transposed else shape, transposed)


def _shape(pieces: Pieces, weights: Mapping[str, Weight]) -> tuple[int, ...]:
    """Return the shape of the weight that the name means. Raises BadAdapter if its parts have different inputs."""
    first, *others = (weights[piece.parameter].logical for piece in pieces)
    if any(other[1:] != first[1:] for other in others):
        raise BadAdapter(f"{', '.join(piece.parameter for piece in pieces)} have different inputs")
    if pieces[0].rows is None and pieces[0].source_rows is None:
        return first
    return (sum(p.rows[1] - p.rows[0] if p.rows else weights[p.parameter].logical[0] for p in pieces), *first[1:])


def _overlap(one: Piece, other: Piece) -> bool:
    return one.rows is None or other.rows is None or (one.rows[0] < other.rows[1] and other.rows[0] < one.rows[1])


def _fits(adapter: Adapter, shape: tuple[int, ...]) -> bool:
    try:
        adapter.fit(shape)
    except BadAdapter:
        return False
    return True


def scale_beside(name: str, weights: Mapping[str, Weight]) -> str | None:
    """Return the tensor that shows that a float8 weight is stored in units of a scale, or None.

    That is one beside it, such as `fc.weight_scale` or `fc.scale_weight`, or `scaled_fp8`, which marks all weights.
    """
    module = name.rpartition(".")[0]
    beside = (other for other in weights if other.rpartition(".")[0] == module and "scale" in other.rpartition(".")[2])
    return next(beside, "scaled_fp8" if "scaled_fp8" in weights else None)
