"""The live road as it is called: overflow, interrupts, odd arguments, compiled and captured models."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from nets import many, one
from torch import nn
from two_layers import BOTH, plain, same, two

import lyc_fx
from lyc_fx.algebra import Structure
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter, Unsupported, WrongArgument
from lyc_fx.merging import blockwise


def test_overflow_is_loud_and_undone() -> None:
    model = two(torch.float16)
    before = copy.deepcopy(model.state_dict())
    huge = plain(seed=1).with_factors({"up": torch.full((4, 3), 1e6)})
    with pytest.raises(BadAdapter, match=r"b\.weight: \d+ of 16 values .* beyond the range of torch.float16, ±65504"):
        lyc_fx.merge(model, many(a=plain(), b=huge))
    same(model.state_dict(), before)
    program = lyc_fx.capture(model, (torch.ones(2, 4, dtype=torch.float16),))
    with pytest.raises(BadAdapter, match=r"b\.weight: \d+ of 16"):
        lyc_fx.fold(lyc_fx.splice(program, many(b=huge)))


def test_infinities_of_the_base_are_its_own() -> None:
    model = two()
    with torch.no_grad():
        model.a.weight[0, 0] = float("inf")
    lyc_fx.merge(model, BOTH, allow_nonfinite=True)
    assert int(torch.isfinite(model.a.weight).sum()) == 15


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError()])
def test_an_interrupted_merge_is_undone(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    model = two()
    model.c = nn.Linear(4, 4)
    model.c.weight = model.a.weight
    before, parameter = copy.deepcopy(model.state_dict()), model.a.weight
    calls = []

    def failing(self: LoCon) -> Structure:
        calls.append(self)
        if len(calls) > 2:
            raise error
        return expression(self)

    expression = LoCon.expression
    monkeypatch.setattr(LoCon, "expression", failing)
    with pytest.raises(type(error)):
        lyc_fx.merge(model, many(a=plain(), b=plain(seed=1), c=plain(seed=2)))
    assert len(calls) == 3
    same(model.state_dict(), before)
    assert model.a.weight is model.c.weight is parameter


@pytest.mark.parametrize("swapped", [False, True])
def test_an_interrupt_after_the_last_block_is_undone(swapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the threads end."""
    model = two()
    before = copy.deepcopy(model.state_dict())

    class Interrupted(ThreadPoolExecutor):
        def __exit__(self, *error: object) -> None:
            super().__exit__(*error)  # type: ignore[arg-type]
            assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            raise KeyboardInterrupt

    monkeypatch.setattr(blockwise, "ThreadPoolExecutor", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        lyc_fx.live(model).set({BOTH: 1.0}) if swapped else lyc_fx.merge(model, BOTH)
    same(model.state_dict(), before)


def test_training_a_program_leaves_the_adapter_set_alone() -> None:
    adapters = one(plain(), "a")
    adapted = lyc_fx.splice(lyc_fx.capture(two(), (torch.randn(2, 4, dtype=torch.float64),)), adapters)
    with torch.no_grad():
        adapted.get_parameter("lyc_fx.0.a.weight.up").mul_(3)
    assert torch.equal(adapters.entries[0].adapter.factors()["up"], plain().factors()["up"])


def test_an_empty_set_is_no_silent_success() -> None:
    with pytest.raises(BadAdapter, match="the set is empty"):
        lyc_fx.merge(two(), BOTH.select("misspelt_*"))
    with pytest.warns(NothingChanged, match="there is no adapter to apply"):
        assert lyc_fx.merge(two(), BOTH.select("misspelt_*"), strict=False).applied == ()


def test_a_module_is_no_program() -> None:
    with pytest.raises(WrongArgument, match=r"not Two: bring it through lyc_fx\.capture"):
        lyc_fx.splice(two(), BOTH)  # type: ignore[arg-type]


def test_the_same_set_twice_with_other_blocks_in_any_order() -> None:
    stack = [(BOTH, {"a.*": 0.3}), (BOTH, {"a.*": 0.7}), (BOTH, {"a.*": 1.1})]
    models = [two(torch.float64) for _ in range(2)]
    lyc_fx.merge(models[0], stack)
    lyc_fx.merge(models[1], stack[::-1])
    assert torch.equal(models[0].a.weight, models[1].a.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"convention": "lycors"}, "there is no convention 'lycors'"),
        ({"compute": torch.int32}, "floating-point dtype"),
        ({"strength": "half"}, "strength 'half' is not a number"),
        ({"strength": {"a.*": None}}, "strength None is not a number"),
    ],
)
def test_options_that_are_none(options: dict[str, object], message: str) -> None:
    model = two()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BadAdapter, match=message):
        lyc_fx.merge(model, BOTH, **options)  # type: ignore[arg-type]
    same(model.state_dict(), before)


def test_a_compiled_model_has_its_own_names() -> None:
    model, x = two(), torch.randn(2, 4, dtype=torch.float64)
    compiled = torch.compile(model, backend="eager")
    program = lyc_fx.capture(compiled, (x,))
    assert list(program.state_dict()) == list(model.state_dict())
    compiled(x)
    with torch._dynamo.config.patch(error_on_recompile=True):
        lyc_fx.merge(compiled, BOTH)
        torch.testing.assert_close(compiled(x), lyc_fx.capture(model, (x,))(x), rtol=1e-12, atol=1e-12)


def test_a_captured_program_is_no_live_model() -> None:
    program = lyc_fx.capture(two(), (torch.randn(2, 4, dtype=torch.float64),))
    with pytest.raises(Unsupported, match=r"use lyc_fx\.splice and lyc_fx\.fold"):
        lyc_fx.merge(program, BOTH)
