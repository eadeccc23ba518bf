"""From an adapter of a file to the rows of a model's weights that it changes, or the reason why it cannot."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import torch

from lyc_fx.adapters import Entry
from lyc_fx.errors import BadAdapter
from lyc_fx.families import Adapter
from lyc_fx.families.experts import Experts
from lyc_fx.families.full import Full
from lyc_fx.families.replace import Replace
from lyc_fx.naming import Piece, Pieces, in_before_out, projects


@final
@dataclass(frozen=True)
class Normed:
    """From which tensors weight norm computes a weight."""

    direction: str
    magnitude: str
    dim: int
    """That the norm leaves; -1 for a norm over all"""


@final
@dataclass(frozen=True)
class Weight:
    """What must be known of a weight to bind adapters to it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    transposed: bool = False
    """Stored `(in, out)`, as in Conv1D of GPT-2"""
    sideless: bool = False
    """Of a transposed convolution, `(in, out/groups, *kernel)`: which side an adapter means by out, nothing says"""
    scale: str | None = None
    """The tensor that it is in units of, where that is known"""
    normed: Normed | None = None
    """How it is computed, where a checkpoint has no tensor for it"""

    @property
    def height(self) -> int:
        """Rows as it is stored; a number has one."""
        return self.shape[0] if self.shape else 1

    @property
    def logical(self) -> tuple[int, ...]:
        """The shape as adapters see it, `(out, in, *kernel)`."""
        return self.shape[::-1] if self.transposed else self.shape


def placed(
    entry: Entry, found: list[Pieces], taken: Mapping[str, Sequence[tuple[Piece, Entry]]], weights: Mapping[str, Weight]
) -> list[tuple[Piece, Adapter]]:
    """What a file's entry does to which rows of which parameters. Raises BadAdapter where it cannot."""
    if len(found) > 1:
        meant = " or ".join("+".join(p.parameter for p in pieces) for pieces in found)
        raise BadAdapter(f"the name is ambiguous, it may mean {meant}; rename the key to the dotted path")
    pieces, made = found[0], []
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
                f"{piece.parameter} is stored as {weight.dtype} in units of {scale}; merge into the checkpoint before "
                "scaling"
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
        weights[pieces[0].parameter].sideless
        and shape[0] == shape[1]
        and not isinstance(entry.adapter, (Full, Replace))
    ):
        raise BadAdapter(
            f"{pieces[0].parameter} {shape} is of a transposed convolution with as many inputs as outputs: adapters "
            "for it are for the weight as it is stored, (in, out, *kernel), and nothing shows that this one is; give "
            "its difference as a whole, in that order, under the key .diff"
        )
    oriented = _oriented(entry.adapter, pieces[0].parameter, shape, weights)
    try:
        oriented.fit(shape)
    except BadAdapter as error:
        turned = len(pieces) == 1 and len(shape) == 2 and _fits(entry.adapter.oriented(shape[::-1], False), shape[::-1])
        hint = "; it would fit the transpose: is the weight stored the other way round (--transposed)?"
        name = " + ".join(piece.parameter for piece in pieces)
        raise BadAdapter(f"does not fit {name} {shape}: {error}{hint if turned else ''}") from error
    for piece in pieces:
        adapter = oriented if piece.of is None else oriented.rows(*piece.of, shape).compact()
        made.append((piece, adapter))
    return made


def _oriented(adapter: Adapter, name: str, shape: tuple[int, ...], weights: Mapping[str, Weight]) -> Adapter:
    """The adapter as it is for a weight `(out, in)`; what is for a Linear in other models is so already."""
    if isinstance(adapter, Experts):
        shapes = {each: weight.shape for each, weight in weights.items()}
        return replace(adapter, turned=True if in_before_out(name, shapes) else None)
    transposed = weights[name].transposed and not projects(name, weights)
    return adapter.oriented(shape[::-1] if transposed else shape, transposed)


def _shape(pieces: Pieces, weights: Mapping[str, Weight]) -> tuple[int, ...]:
    """Of the weight that a name stands for."""
    first, *others = (weights[piece.parameter].logical for piece in pieces)
    if any(other[1:] != first[1:] for other in others):
        raise BadAdapter(f"{', '.join(piece.parameter for piece in pieces)} have different inputs")
    if pieces[0].rows is None and pieces[0].of is None:
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
    """What a float8 weight must be multiplied by: `fc.weight_scale`, `fc.scale_weight`, or a mark for all of them."""
    module = name.rpartition(".")[0]
    beside = (other for other in weights if other.rpartition(".")[0] == module and "scale" in other.rpartition(".")[2])
    return next(beside, "scaled_fp8" if "scaled_fp8" in weights else None)
