"""Whether a family from outside declares what `Adapter` asks for, without a contradiction."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from itertools import chain

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra.factor_shapes import RANK, WORDS
from lyc_fx.errors import WrongArgument
from lyc_fx.extensions import named, shown

_PLAIN = "weight"
"""A suffix that counts beside one other key alone, so that others may end in it"""
_RESERVED = frozenset({"alpha", "reshape_weight", "bias_indices", "bias_values", "bias_size"})
"""What may stand beside the factors of every family"""


def check(family: type[Adapter], others: tuple[type[Adapter], ...]) -> None:
    """Raise WrongArgument, naming what is wrong, for a family that could not be read beside the others."""
    named(family, others)
    for fault in chain(_faults(family), _collisions(family, others)):  # the second relies on the first
        raise WrongArgument(f"{shown(family)}: {fault}")


def _faults(family: type[Adapter]) -> Iterator[str]:
    if "__dataclass_fields__" not in vars(family):
        yield "it is no dataclass: @dataclass(frozen=True, eq=False, kw_only=True)"
    missing = [name for name in ("suffixes", "layouts") if not getattr(family, name, None)]
    if missing:
        yield f"it declares no {' and no '.join(missing)}"
        return
    factors, numbers = set(family.suffixes), set(family.scalars)
    known = {field.name: field for field in fields(family)}
    for what, names in (
        ("suffixes", factors | numbers),
        ("layouts", frozenset().union(*family.layouts)),
        ("vectors", family.vectors),
        ("bias_suffixes", set(family.bias_suffixes)),
        ("variants", {name for shapes in getattr(family, "variants", {}).values() for name in shapes}),
    ):
        if unknown := sorted(names - known.keys()):
            yield f"{what} name {', '.join(unknown)}, of which there is no field"
        if what != "suffixes" and (unknown := sorted(names - factors)):
            yield f"{what} name {', '.join(unknown)}, of which suffixes say no key"
    shapes = " ".join(text for variant in getattr(family, "variants", {}).values() for text in variant.values())
    if unknown := sorted({word for word in re.split(r"[ *]+", shapes) if not RANK.fullmatch(word)} - {"", *WORDS}):
        sizes = ", ".join(WORDS)
        yield f"variants have the words {', '.join(unknown)}: sizes are {sizes}, and ranks a letter, as r or p2"
    required = {name for name, field in known.items() if field.default is MISSING and field.default_factory is MISSING}
    if homeless := sorted(required - factors - numbers):
        yield f"the fields {', '.join(homeless)} have no key: they belong into suffixes, or into scalars"
    if unused := sorted(factors - frozenset().union(*family.layouts)):
        yield f"no layout has {', '.join(unused)}"
    optional = numbers | (factors - frozenset.intersection(*family.layouts))
    if needed := sorted(optional & required):
        yield f"{', '.join(needed)} may be absent, but the field has no default"


def _keys(family: type[Adapter]) -> list[str]:
    return [*family.suffixes.values(), *family.scalars.values(), *family.bias_suffixes.values()]


def _collisions(family: type[Adapter], others: tuple[type[Adapter], ...]) -> Iterator[str]:
    own = _keys(family)
    for suffix in own:
        if own.count(suffix) > 1:
            yield f"two of its fields have the key {suffix}"
        if suffix in _RESERVED:
            yield f"the key {suffix} has a meaning beside every algorithm"
        for other in others:
            for theirs in _keys(other):
                if suffix == theirs or (theirs != _PLAIN and _ends(suffix, theirs)) or _ends(theirs, suffix):
                    yield f"its key {suffix} is, or ends like, {theirs} of {shown(other)}"


def _ends(text: str, end: str) -> bool:
    return text.endswith(f".{end}")
