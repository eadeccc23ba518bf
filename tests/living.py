"""A small model, random adapters for it, and what a merge makes of the two."""

import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

X = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(4, 6)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 15), nn.GELU(), nn.Linear(15, 6)).double()


def adapters(
    model: nn.Module,
    *names: str,
    family: str = "locon",
    rank: int = 2,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
) -> AdapterSet:
    kind = next(each for each in FAMILIES if each.name == family)
    rng = torch.Generator().manual_seed(seed)

    def adapter(name: str) -> Adapter:
        shape = tuple(model.get_submodule(name).weight.shape)  # type: ignore[union-attr, arg-type]
        found = random_adapter(kind, shape, rank=rank, alpha=3.0, dtype=torch.float64, generator=rng)
        return found.with_factors({field: (factor / 4).to(dtype) for field, factor in found.factors().items()})

    return AdapterSet(tuple(Entry(name, "weight", adapter(name), (name,)) for name in names), "test.safetensors")


def merged(model: nn.Module, choice: object, strength: float = 1.0) -> nn.Module:
    lyc_fx.merge(model, choice, strength)  # type: ignore[arg-type]
    return model


def same(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
