"""Factors of any shape and dtype: an error of lyc-fx that names what is wrong, or a merge; never a torch error."""

import random
import warnings

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter

pytestmark = pytest.mark.filterwarnings("ignore:.*alpha is 0")


def low_rank(dtype: torch.dtype = torch.float32, **more: Tensor) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(0)
    up, down = torch.randn(4, 2, generator=rng), torch.randn(2, 4, generator=rng)
    factors = {"layer.lora_up.weight": up.to(dtype), "layer.lora_down.weight": down.to(dtype)}
    return factors | {f"layer.{name}": value for name, value in more.items()}


def with_weight(*shape: int) -> nn.Module:
    model = nn.Module()
    model.layer = nn.Module()
    model.layer.weight = nn.Parameter(torch.ones(shape))
    return model


def spoilt(rng: random.Random, shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """The shape that a factor should have, that shape with a fault, or any other."""
    if shape is None or rng.random() < 0.2:
        return tuple(rng.choice([1, 2, 3, 4]) for _ in range(rng.randint(0, 4)))
    changed = list(shape)
    match rng.randint(0, 9):
        case 0 if changed:
            changed[rng.randrange(len(changed))] = rng.choice([1, 2, 3])
        case 1:
            changed.append(1)
        case 2:
            changed = changed[:-1]
    return tuple(changed)


@pytest.mark.parametrize("seed", range(4))
def test_any_shapes(seed: int) -> None:
    rng, merged = random.Random(seed), 0
    for _ in range(1500):
        shape = tuple(rng.choice([1, 2, 3, 4]) for _ in range(rng.randint(0, 4)))
        family = rng.choice(FAMILIES)
        layout = rng.choice(family.layouts)
        try:
            right = family.factor_shapes(shape, layout, rng.choice([1, 2, 3]))
        except (BadAdapter, ValueError, IndexError):  # of a layout that such a weight cannot have
            right = {}
        tensors = {f"layer.{family.suffixes[n]}": torch.randn(spoilt(rng, right.get(n))) for n in sorted(layout)}
        tensors |= {f"layer.{suffix}": torch.tensor(rng.randint(0, 1)) for suffix in family.scalars.values()}
        tensors |= {"layer.alpha": torch.tensor(rng.choice([0.0, 1.0]))} if rng.random() < 0.5 else {}
        model = with_weight(*shape)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NothingChanged)  # a difference of size 0, or a weight scaled by itself
                report = lyc_fx.merge(model, lyc_fx.load(tensors), 0.5)
        except BadAdapter:
            continue
        assert report.applied[0].shape == shape
        merged += 1
    assert merged > 100


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_floating_factors(dtype: torch.dtype) -> None:
    model, factors = with_weight(4, 4), low_rank(dtype)
    lyc_fx.merge(model, lyc_fx.load(factors))
    wanted = 1 + factors["layer.lora_up.weight"].double() @ factors["layer.lora_down.weight"].double()
    assert torch.equal(model.layer.weight, wanted.float())


def test_nan_in_float8_is_found() -> None:
    factors = low_rank(torch.float8_e4m3fn)
    factors["layer.lora_up.weight"] = torch.full((4, 2), float("nan")).to(torch.float8_e4m3fn)
    with pytest.raises(BadAdapter, match=r"lora_up\.weight holds 8 values that are not finite"):
        lyc_fx.load(factors)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.bool, torch.complex64])
def test_other_factors_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(BadAdapter, match=rf"lora_up\.weight is stored as {dtype}"):
        lyc_fx.load(low_rank(dtype))


def test_factors_without_values_are_refused() -> None:
    with pytest.raises(BadAdapter, match="has no values"):
        lyc_fx.load({key: value.to("meta") for key, value in low_rank().items()})


@pytest.mark.parametrize("alpha", [torch.tensor(1j), torch.ones(2), torch.tensor(1.0, device="meta")])
def test_an_alpha_that_is_no_number(alpha: Tensor) -> None:
    with pytest.raises(BadAdapter, match="alpha: a number is expected"):
        lyc_fx.load(low_rank(alpha=alpha))


@pytest.mark.parametrize("odd", [{1: torch.ones(2)}, {"layer.alpha": 2.0}, {"state_dict": low_rank()}])
def test_a_dict_of_other_things(odd: dict[object, object]) -> None:
    with pytest.raises(BadAdapter, match="every value a torch"):
        lyc_fx.load({**low_rank(), **odd})


def test_a_sparse_size_of_one_number() -> None:
    residual = {"bias_indices": torch.zeros(1, 1), "bias_values": torch.ones(1), "bias_size": torch.tensor(4)}
    with pytest.raises(BadAdapter, match="does not fit"):
        lyc_fx.merge(with_weight(4, 4), lyc_fx.load({f"layer.{k}": v for k, v in residual.items()}))
