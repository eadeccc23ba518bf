"""Factors for the tests of layouts, and ΔW as the library reads it."""

import torch
from torch import Tensor

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algorithms.locon import LoCon


def random(*shape: int) -> Tensor:
    """Random float64 values, the same for the same shape and others for every other."""
    seed = sum(size * 101**position for position, size in enumerate(shape))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def delta(tensors: dict[str, Tensor], shape: tuple[int, ...], layout: str | None = None) -> Tensor:
    """ΔW of the one module of these tensors, by the library's formula in float64."""
    [entry] = lyc_fx.load(tensors, layout=layout).entries  # type: ignore[arg-type]
    assert isinstance(entry.adapter, Additive)
    entry.adapter.fit(shape)
    return entry.adapter.to(torch.float64).delta(shape)


def linear(up: tuple[int, int], down: tuple[int, int], module: str = "m") -> dict[str, Tensor]:
    return {f"{module}.lora_up.weight": random(*up), f"{module}.lora_down.weight": random(*down)}


def up_of(adapters: AdapterSet, module: str = "m") -> Tensor:
    [adapter] = [e.adapter for e in adapters.entries if e.module == module]
    assert isinstance(adapter, LoCon)
    return adapter.up


def keys(module: str = "lycoris_fc") -> dict[str, Tensor]:
    return {
        f"{module}.lora_up.weight": torch.randn(5, 2),
        f"{module}.lora_down.weight": torch.randn(2, 3),
        f"{module}.alpha": torch.tensor(3.0),
    }
