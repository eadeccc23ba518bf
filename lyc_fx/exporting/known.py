"""What adapters are bound to in an exported program, as JSON in its manifest, and read back from there."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch

from lyc_fx.binding.fitting import Weight, WeightNorm
from lyc_fx.graph.places import Known
from lyc_fx.naming import Piece

Json = Mapping[str, Any]


def known_as_json(known: Known) -> Json:
    """All fields, by name."""
    return {
        "weights": {name: _described(weight) for name, weight in known.weights.items()},
        "aliases": dict(known.aliases),
        "same": {name: [asdict(piece) for piece in pieces] for name, pieces in known.same.items()},
        "on_disk": dict(known.on_disk),
    }


def read_known(data: Json) -> Known:
    """From what `known_as_json` made; further entries are left alone."""
    weights = {name: _weight(each) for name, each in data["weights"].items()}
    same = {name: tuple(_piece(piece) for piece in pieces) for name, pieces in data["same"].items()}
    return Known(weights, data["aliases"], same, data["on_disk"])


def _described(weight: Weight) -> dict[str, Any]:
    """Only what is not as usual: models have thousands of weights."""
    every = {f.name: (getattr(weight, f.name), f.default) for f in fields(weight)}
    said = {name: value for name, (value, usual) in every.items() if value != usual}
    norm = {"weight_norm": asdict(weight.weight_norm)} if weight.weight_norm else {}
    return {**said, "dtype": dtype_name(weight.dtype), **norm}


def _weight(data: Json) -> Weight:
    norm = {"weight_norm": WeightNorm(**data["weight_norm"])} if "weight_norm" in data else {}
    given = {**data, **norm, "shape": tuple(data["shape"]), "dtype": dtype_of(data["dtype"])}
    return Weight(**given)


def _piece(data: Json) -> Piece:
    rows, source = (None if data[name] is None else tuple(data[name]) for name in ("rows", "source_rows"))
    return Piece(data["parameter"], rows, source)  # type: ignore[arg-type]


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def dtype_of(name: str) -> torch.dtype:
    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found
