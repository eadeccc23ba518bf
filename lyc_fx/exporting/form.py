"""What adapters an exported program takes, as JSON in its manifest, and read back from there."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self, final

import torch

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import families
from lyc_fx.errors import Unsupported
from lyc_fx.exporting.known import Json, dtype_name, dtype_of, known_as_json, read_known
from lyc_fx.graph.places import Known
from lyc_fx.graph.program import BANK
from lyc_fx.graph.slots import Slots


@final
@dataclass(frozen=True)
class Slot:
    """The place of one adapter."""

    weight: str
    """The parameter that it changes"""
    of_set: int
    adapter: Adapter
    """Its family and variant, and factors without values, of the ranks that the program was exported with"""
    inputs: Mapping[str, str]
    """The name of the input in `adapter` for each factor, by its field"""
    ranks: Mapping[str, tuple[int, ...]]
    """The dimensions of each factor, by its field, that may have another size, the adapter's rank"""
    rows: tuple[int, int] | None
    alpha_at: int | None
    """The position of alpha in `adapter["alphas"]`, if there is one"""
    share_at: int
    """The position of the block weight in `adapter["shares"]`"""


@final
@dataclass(frozen=True)
class Form:
    """All places of a program, and what adapters are bound to."""

    known: Known
    slots: tuple[Slot, ...]
    sets: int
    alphas: int
    """The number of elements of `adapter["alphas"]`"""

    @classmethod
    def read(cls, data: Json) -> Self:
        """From what `form` made."""
        return cls(read_known(data), tuple(map(_slot, data["slots"])), data["sets"], data["alphas"])


def form(known: Known, slots: Slots, terms: Iterator[tuple[str, Any]], varying: Mapping[str, tuple[int, ...]]) -> Json:
    """Describe a lifted program: what it is bound by, its terms with their weights' names, and the ranks that vary."""
    alphas, shares = slots.vectors.get("alphas", ()), slots.vectors["shares"]
    found = []
    for weight, term in terms:
        inputs = {field: name.removeprefix(f"{BANK}.") for field, name in term.places.items()}
        found.append({
            "weight": weight,
            "set": int(term.strength.split(".")[1]),
            "family": term.adapter.name,
            "factors": {
                field: {"input": inputs[field], "shape": list(f.shape), "dtype": dtype_name(f.dtype),
                        "ranks": list(varying.get(inputs[field], ()))}
                for field, f in term.adapter.factors().items()
            },
            "more": _more(term.adapter),
            "rows": term.rows,
            "alpha": alphas.index(term.numbers["alpha"]) if "alpha" in term.numbers else None,
            "share": shares.index(term.numbers["share"]),
        })  # fmt: skip
    return {
        **known_as_json(known),
        "slots": found,
        "sets": len(slots.strengths),
        "alphas": len(alphas),
    }


def _more(adapter: Adapter) -> dict[str, Any]:
    """The fields of an adapter that are no factors, and not as a new one has them."""
    found = {f.name: (getattr(adapter, f.name), f.default) for f in fields(adapter) if f.name not in adapter.suffixes}
    return {name: value for name, (value, usual) in found.items() if value != usual}


def _slot(data: Json) -> Slot:
    family = next((each for each in families() if each.name == data["family"]), None)
    if family is None:
        raise Unsupported(f"{data['weight']}: the file is for adapters of {data['family']}, which is not known here")
    factors = {
        field: torch.empty(each["shape"], dtype=dtype_of(each["dtype"]), device="meta")
        for field, each in data["factors"].items()
    }
    return Slot(
        data["weight"],
        data["set"],
        family(**factors, **data["more"]),  # type: ignore[arg-type]  # its own fields
        {field: each["input"] for field, each in data["factors"].items()},
        {field: tuple(each["ranks"]) for field, each in data["factors"].items()},
        None if data["rows"] is None else tuple(data["rows"]),
        data["alpha"],
        data["share"],
    )
