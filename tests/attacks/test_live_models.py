"""The live road on parameters that are not plain: shared memory, views, inference tensors, computed weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from nets import many
from oracle import delta
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from two_layers import BOTH, close, plain, same, two

import lyc_fx
from lyc_fx.errors import Unsupported


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
