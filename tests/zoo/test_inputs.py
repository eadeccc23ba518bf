"""The forms in which models take inputs and keep constants."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture import SpecializedDimension
from tests.zoo.adapted import adapters_for, pairs


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


@dataclass
class Batch:
    x: Tensor
    times: int = 3


class Inputs(nn.Module):
    """A layer over whatever `forward` below gives it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class Tuples(Inputs):
    def forward(self, pair: Pair, more: list[Tensor]) -> Pair:
        return Pair(self.layer(pair.left), pair.right + more[0])


class Objects(Inputs):
    def forward(self, batch: Batch) -> Batch:
        return Batch(self.layer(batch.x) * batch.times, batch.times)


class Variadic(Inputs):
    def forward(self, *xs: Tensor, **more: Any) -> dict[str, Tensor]:
        return {"sum": self.layer(sum(xs)) + more["bias"], "named": more["named"]["x"]}


class Optional(Inputs):
    def forward(self, x: Tensor, scale: float = 1.0, extra: Any = None, options: Any = None) -> tuple[Tensor, Any]:
        return self.layer(x) * scale, extra


def _x(rows: int) -> Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))


def _named(rows: int) -> dict[str, Any]:
    return {"named": OrderedDict(x=_x(rows)), "bias": _x(rows)}


CALLS = {
    "tuples": (Tuples, lambda n: ((Pair(_x(n), _x(n)), [_x(n)]), {})),
    "objects": (Objects, lambda n: ((Batch(_x(n)),), {})),
    "variadic": (Variadic, lambda n: ((_x(n), _x(n)), _named(n))),
    "optional": (Optional, lambda n: ((_x(n), 2.0), {"options": {}, "extra": None})),
}


@pytest.mark.parametrize("name", CALLS)
def test_form_of_inputs(name: str) -> None:
    kind, call = CALLS[name]
    model = kind()
    captured = lyc_fx.capture(model, *call(2), "auto")
    for rows in (2, 5):
        args, kwargs = call(rows)
        expected, result = model(*args, **kwargs), captured(*args, **kwargs)
        assert type(result) is type(expected)
        assert all(torch.equal(*both) for both in pairs(expected, result))


def test_variadic_keywords_are_named() -> None:
    captured = lyc_fx.capture(Variadic(), (_x(2),), _named(2), {"xs": "rows _", "bias": "rows _", "named": "rows _"})
    assert all(isinstance(n.meta["val"].shape[0], torch.SymInt) for n in captured.graph.find_nodes(op="placeholder"))
    with pytest.raises(CaptureError, match="names other; the inputs are xs, named, bias"):
        lyc_fx.capture(Variadic(), (_x(2),), _named(2), {"other": "rows _"})


def test_keywords_in_another_order() -> None:
    class Two(Inputs):
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return self.layer(first) - second

    model = Two()
    captured = lyc_fx.capture(model, (), {"second": _x(2), "first": -_x(2)})
    assert torch.equal(captured(-_x(2), _x(2)), model(-_x(2), _x(2)))


def test_value_in_an_object_is_guarded() -> None:
    captured = lyc_fx.capture(Objects(), (Batch(_x(2)),))
    with pytest.raises(CaptureError, match=r"Batch.times is 7; the program was captured with 3"):
        captured(Batch(_x(2), 7))


@pytest.mark.parametrize(
    ("rows", "shapes", "sizes"), [(2, {"x": "rows width"}, r"x.shape\[1\] = 4"), (1, "auto", r"x.shape\[0\] = 1")]
)
def test_size_that_cannot_vary_is_named(rows: int, shapes: Any, sizes: str) -> None:
    with pytest.warns(SpecializedDimension, match=f"program: {sizes}. The model"):
        lyc_fx.capture(Optional(), (_x(rows),), None, shapes)


def test_constants_are_no_keys() -> None:
    class Constants(Inputs):
        def __init__(self) -> None:
            super().__init__()
            self.plain = torch.randn(4)
            self.register_buffer("table", torch.randn(4), persistent=False)
            self.register_buffer("kept", torch.randn(4))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * self.plain + self.table + self.kept + torch.tensor([1.0, 2.0, 3.0, 4.0])

    model = Constants()
    captured = lyc_fx.capture(model, (_x(2),))
    folded = lyc_fx.fold(lyc_fx.splice(captured, adapters_for({"layer": (4, 4)}, torch.float32)), check=True)
    assert sorted(folded.state_dict()) == sorted(captured.state_dict()) == sorted(model.state_dict())
    assert torch.equal(captured(_x(2)), model(_x(2)))
