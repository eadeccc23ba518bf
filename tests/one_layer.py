"""Inputs and adapters for models around one layer `l`."""

import torch
from torch import Tensor, nn

import lyc_fx

STRENGTH = 0.7


def x(*shape: int) -> Tensor:
    return torch.randn(shape or (4, 6), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def factors(name: str = "lycoris_l", out: int = 15, inner: int = 6) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((out, 2), (2, inner)))
    return {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}


def merged(model: nn.Module, tensors: dict[str, Tensor]) -> nn.Module:
    lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    return model
