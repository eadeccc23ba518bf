"""Small models of real architectures, and adapters for them under LyCORIS's names."""

from typing import Any

import torch
from nets import random_for
from torch import nn

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.naming import flatten


def unet(sdxl: bool) -> nn.Module:
    from diffusers import UNet2DConditionModel

    extra: dict[str, Any] = (
        {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
        if sdxl
        else {}
    )
    return UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, cross_attention_dim=12, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **extra,
    )  # fmt: skip


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        num_layers=1, num_single_layers=1, attention_head_dim=6, num_attention_heads=2, joint_attention_dim=10,
        pooled_projection_dim=9, in_channels=4, axes_dims_rope=(2, 2, 2), guidance_embeds=True,
    )  # fmt: skip


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=6, num_attention_heads=2,
        joint_attention_dim=10, caption_projection_dim=12, pooled_projection_dim=9, out_channels=4,
        dual_attention_layers=(0,), pos_embed_max_size=8,
    )  # fmt: skip


def wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2), num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=10,
        freq_dim=8, ffn_dim=20, num_layers=2, rope_max_seq_len=8,
    )  # fmt: skip


class Net(nn.Module):
    """Layers of an architecture that nobody knows."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 15)
        self.block = nn.ModuleDict({"conv": nn.Conv2d(6, 10, 3), "out_proj": nn.Linear(15, 4)})


MODELS = {"unet": lambda: unet(False), "sdxl": lambda: unet(True), "flux": flux, "sd3": sd3, "wan": wan, "net": Net}


def made(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(11)
    model = MODELS[name]().to(dtype)
    for parameter in model.parameters():  # some start at zero
        nn.init.normal_(parameter, 0.0, 0.5)
    return model


def adapters_for(model: nn.Module, variant: tuple[type[Adapter], frozenset[str]] | None = None) -> AdapterSet:
    """An adapter of one variant for each Linear and convolution of a model that can have it."""
    entries = []
    for number, (path, module) in enumerate(model.named_modules()):
        if isinstance(module, nn.Linear | nn.Conv2d):
            adapter = random_for(variant or (LoCon, LoCon.layouts[0]), tuple(module.weight.shape), rank=2, seed=number)
            if adapter is not None:
                entries.append(Entry(f"lycoris_{flatten(path)}", "weight", adapter, (path,)))
    return AdapterSet(tuple(entries), "test.safetensors", {"ss_network_dim": "2"})
