"""Calls of a captured program in every arrangement that the model itself takes: bound alike, or refused in words."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import CaptureError

X, MASK = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.linspace(1, 2, 4)


class Options(nn.Module):
    """Defaults of every kind that models have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0, *, negate: bool = False, **more: Tensor
    ) -> Tensor:
        y = self.layer(x) * scale
        y = y if mask is None else y + mask
        for each in more.values():
            y = y + each
        return -y if negate else y


CALLS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((X,), {}),
    ((), {"x": X}),
    ((X, None), {}),
    ((X,), {"mask": None, "negate": False}),
    ((X, None, 1.0), {}),
    ((X,), {"negate": True}),
    ((X, MASK), {}),
    ((), {"negate": False, "mask": MASK, "x": X}),
    ((X,), {"scale": 0.5}),
    ((X, MASK, 0.5), {"negate": True}),
    ((X,), {"extra": 2 * MASK}),
]


@pytest.mark.parametrize("captured", range(len(CALLS)))
def test_a_call_is_the_model_s_or_an_error(captured: int) -> None:
    """No arrangement may give something else; those that mean what was captured must be taken."""
    model = Options()
    args, kwargs = CALLS[captured]
    program = lyc_fx.capture(model, args, kwargs)
    wanted, taken = model(*args, **kwargs), 0
    for other_args, other_kwargs in CALLS:
        theirs = model(*other_args, **other_kwargs)
        if torch.equal(theirs, wanted):
            assert torch.equal(program(*other_args, **other_kwargs), wanted)
            taken += 1
        else:
            with pytest.raises(CaptureError, match=r"capture"):
                program(*other_args, **other_kwargs)
    assert taken >= 1


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((X, None, 1.0, True), {}), ((X,), {"x": X})])
def test_what_no_forward_takes_is_a_type_error(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        lyc_fx.capture(Options(), (X,))(*args, **kwargs)


class Nested(nn.Module):
    def forward(self, x: Tensor, cond: dict[str, Tensor | None]) -> Tensor:
        return x + sum(each for each in cond.values() if each is not None)


def test_none_inside_an_input_is_part_of_the_program() -> None:
    x = torch.randn(3, 4)
    program = lyc_fx.capture(Nested(), (x, {"a": None, "b": MASK}))
    assert torch.equal(program(x, {"a": None, "b": MASK}), x + MASK)
    with pytest.raises(CaptureError, match=r"a is a Tensor, and was no tensor .* in the capture"):
        program(x, {"a": MASK, "b": MASK})
    with pytest.raises(CaptureError, match="b is a NoneType, and was a tensor in the capture"):
        program(x, {"a": None, "b": None})


def test_arguments_are_bound_after_every_pass_and_in_a_compiled_program() -> None:
    model = Options()
    adapters = lyc_fx.load({"layer.lora_up.weight": torch.randn(4, 2), "layer.lora_down.weight": torch.randn(2, 6)})
    program = lyc_fx.splice(lyc_fx.capture(model, (X, MASK), {"negate": True}), adapters, 0.7)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, 0.7)
    wanted = live(X, MASK, negate=True)
    for each in (program, lyc_fx.lower(program, check=True), lyc_fx.fold(program, check=True)):
        compiled = torch.compile(each, backend="eager", fullgraph=True)
        for run, (args, kwargs) in itertools.product(
            (each, compiled), (((X, MASK, 1.0), {"negate": True}), ((), {"mask": MASK, "x": X, "negate": True}))
        ):
            torch.testing.assert_close(run(*args, **kwargs), wanted)
        with pytest.raises(CaptureError, match=r"scale was left out of the capture, so that its default, 1\.0"):
            each(X, MASK, 2.0, negate=True)


def test_a_deep_copy_takes_the_same_calls() -> None:
    model = Options()
    program = lyc_fx.capture(model, (X, MASK))
    for each in (copy.deepcopy(program), copy.deepcopy(copy.deepcopy(lyc_fx.fold(program)))):
        assert torch.equal(each(X, mask=MASK, scale=1.0), model(X, MASK))
        assert len(each._forward_pre_hooks) == len(program._forward_pre_hooks)
        with pytest.raises(CaptureError, match="scale was left out of the capture"):
            each(X, MASK, 2.0)
        with pytest.raises(CaptureError, match="captured for other inputs"):
            each(X[:, :5], MASK)
