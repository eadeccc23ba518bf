"""The live road on parameters that are not plain: shared memory, views, inference tensors, computed weights."""

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from nets import many, one, random_for
from oracle import delta
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import lyc_fx
from lyc_fx import blockwise
from lyc_fx.algebra import Structure
from lyc_fx.errors import BadAdapter, Unsupported, WrongArgument
from lyc_fx.families import Adapter
from lyc_fx.families.locon import LoCon
from lyc_fx.report import NothingChanged


class Two(nn.Module):
    """Two linear layers of one size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x))


def plain(shape: tuple[int, ...] = (4, 4), seed: int = 0) -> Adapter:
    adapter = random_for((LoCon, LoCon.layouts[0]), shape, seed=seed)
    assert adapter is not None
    return adapter


BOTH = many(a=plain(), b=plain(seed=1))


def two(dtype: torch.dtype = torch.float64) -> Two:
    torch.manual_seed(0)
    return Two().to(dtype)


def close(weight: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(weight.detach(), wanted, rtol=1e-12, atol=1e-12)


def test_parameters_of_one_memory_are_untied() -> None:
    model = two()
    model.b.weight = nn.Parameter(model.a.weight.data)
    before = model.a.weight.detach().clone()
    report = lyc_fx.merge(model, many(b=plain()))
    close(model.b.weight, before + delta(plain(), (4, 4)))
    assert torch.equal(model.a.weight, before)
    assert report.notes == ("b.weight was tied to a.weight: it is untied",)


def test_both_of_one_memory() -> None:
    model = two()
    model.b.weight = nn.Parameter(model.a.weight.data)
    before = model.a.weight.detach().clone()
    lyc_fx.merge(model, BOTH)
    close(model.a.weight, before + delta(plain(), (4, 4)))
    close(model.b.weight, before + delta(plain(seed=1), (4, 4)))


def test_slices_that_do_not_overlap_are_written_in_place() -> None:
    model, fused = two(), torch.randn(8, 4, dtype=torch.float64)
    before = fused.clone()
    model.a.weight, model.b.weight = nn.Parameter(fused[:4]), nn.Parameter(fused[4:])
    assert lyc_fx.merge(model, many(b=plain())).notes == ()
    close(fused, torch.cat([before[:4], before[4:] + delta(plain(), (4, 4))]))


def test_an_expanded_weight() -> None:
    model, row = two(), torch.randn(4, dtype=torch.float64)
    model.b.weight = nn.Parameter(row.expand(4, 4))
    lyc_fx.merge(model, BOTH)
    close(model.b.weight, row + delta(plain(seed=1), (4, 4)))


@pytest.mark.parametrize("tied", [False, True])
def test_inference_mode(tied: bool) -> None:
    with torch.inference_mode():
        model = two()
    model.a = two().a
    if tied:
        model.b.weight = model.a.weight
    wanted = model.b.weight + delta(plain(), (4, 4))
    with torch.inference_mode():
        lyc_fx.merge(model, many(b=plain()))
    close(model.b.weight, wanted)
    assert model.b.weight.is_inference() is not tied


def test_a_weight_that_is_a_buffer() -> None:
    model = two()
    frozen = model.a.weight.detach()
    del model.a.weight
    model.a.register_buffer("weight", frozen.clone())
    program = lyc_fx.capture(model, (torch.randn(2, 4, dtype=torch.float64),))
    folded = lyc_fx.fold(lyc_fx.splice(program, many(a=plain())))
    lyc_fx.merge(model, many(a=plain()))
    close(model.a.weight, frozen + delta(plain(), (4, 4)))
    assert torch.equal(folded.get_buffer("a.weight"), model.a.weight)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("wrap", [nn.utils.weight_norm, parametrizations.weight_norm])
@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("shape", [(4, 5), (1, 5), (4, 1)])
def test_weight_norm_over_any_dimension(
    wrap: Callable[..., nn.Module], dim: int | None, shape: tuple[int, int]
) -> None:
    model = nn.Module()
    model.a = wrap(nn.Linear(shape[1], shape[0]).double(), dim=dim)
    model.a(torch.ones(shape[1], dtype=torch.float64))
    before = model.a.weight.detach().clone()
    lyc_fx.merge(model, many(a=plain(shape)))
    model.a(torch.ones(shape[1], dtype=torch.float64))
    close(model.a.weight, before + delta(plain(shape), shape))


def test_parameters_that_only_look_like_weight_norm() -> None:
    model = two()
    model.a.mix_v, model.a.mix_g = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3, 2))
    assert len(lyc_fx.merge(model, BOTH).applied) == 2


class Doubled(nn.Module):
    """A parametrization without an inverse."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize(
    "computed",
    [
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda module: parametrize.register_parametrization(module, "weight", Doubled()),
    ],
)
def test_a_parametrization_that_cannot_give_the_weight_is_refused(computed: Callable[[nn.Module], object]) -> None:
    model = two()
    computed(model.b)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(Unsupported, match=r"b\.weight is computed by .*remove_parametrizations"):
        lyc_fx.merge(model, BOTH)
    same(model.state_dict(), before)
    lyc_fx.merge(model, many(a=plain()))
    same({k: v for k, v in model.state_dict().items() if k != "a.weight"}, before)


def same(state: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    for name, tensor in state.items():
        assert torch.equal(tensor, before[name]), name


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


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_row_that_becomes_zero_under_weight_norm() -> None:
    model, x = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 4, bias=False))), torch.randn(2, 4)
    base = model[0].weight.detach().clone()
    model[0].weight = model[0].weight.detach()  # as capture can copy it
    adapters = lyc_fx.load({"0.diff": torch.cat([-base[:1], torch.ones(3, 4)])})
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters))
    lyc_fx.merge(model, adapters)
    for result in (model(x), folded(x)):
        torch.testing.assert_close(result, x @ torch.cat([torch.zeros(1, 4), base[1:] + 1]).t())


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
