"""A UNet of diffusers without a checkpoint, its inputs, and adapters for it."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter

_TEXT = 24


def unet(channels: Sequence[int]) -> nn.Module:
    """As in Stable Diffusion, with cross-attention in all levels but the lowest."""
    torch.manual_seed(0)
    attending = len(channels) - 1
    return (
        UNet2DConditionModel(
            sample_size=16,
            block_out_channels=tuple(channels),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=_TEXT,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * attending + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * attending,
        )
        .eval()
        .requires_grad_(False)
    )


def inputs(device: torch.device) -> dict[str, Any]:
    sizes = {"sample": (2, 4, 16, 16), "encoder_hidden_states": (2, 5, _TEXT)}
    rng = torch.Generator().manual_seed(1)
    found = {name: torch.randn(size, generator=rng) for name, size in sizes.items()} | {"timestep": torch.tensor(11)}
    return {name: tensor.to(device) for name, tensor in found.items()}


def adapters(model: nn.Module, rank: int, seed: int) -> AdapterSet:
    """A random LoRA for every Linear and Conv2d, on the model's device."""
    family, rng = next(each for each in FAMILIES if each.name == "locon"), torch.Generator().manual_seed(seed)
    entries = []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            shape, device = tuple(module.weight.shape), module.weight.device
            made = random_adapter(family, shape, rank=rank, alpha=rank / 2, generator=rng)
            small = {field: (factor * 0.05).to(device) for field, factor in made.factors().items()}
            entries.append(Entry(path, "weight", made.with_factors(small), (path,)))
    return AdapterSet(tuple(entries), f"rank {rank}")
