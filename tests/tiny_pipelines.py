"""Pipelines of diffusers with tiny models of the real classes, and calls of them without a tokenizer."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from tests.zoo.diffusers_models import _flux, _sdxl

WIDTH = 12


def _clip() -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=WIDTH, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, vocab_size=30,
        projection_dim=16, max_position_embeddings=16, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip


def _vae(channels: int, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8,), down_block_types=("DownEncoderBlock2D",), norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",), latent_channels=channels, sample_size=16, **more,
    )  # fmt: skip


def sdxl() -> StableDiffusionXLPipeline:
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=_vae(4), text_encoder=CLIPTextModel(_clip()), text_encoder_2=CLIPTextModelWithProjection(_clip()),
        tokenizer=None, tokenizer_2=None, unet=_sdxl(), scheduler=EulerDiscreteScheduler(),
    )  # fmt: skip
    return quiet(pipe)


def flux() -> FluxPipeline:
    torch.manual_seed(0)
    t5 = T5EncoderModel(T5Config(d_model=24, d_kv=8, d_ff=20, num_layers=1, num_heads=2, vocab_size=30))
    pipe = FluxPipeline(
        vae=_vae(1, shift_factor=0.1), text_encoder=CLIPTextModel(_clip()), text_encoder_2=t5, tokenizer=None,
        tokenizer_2=None, transformer=_flux(), scheduler=FlowMatchEulerDiscreteScheduler(),
    )  # fmt: skip
    return quiet(pipe)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    return pipe


def image(pipe: Any, size: int = 16) -> Tensor:
    """Two steps from one noise, with text of its own."""
    rng = torch.Generator().manual_seed(0)
    prompt, pooled = torch.randn(1, 5, 24, generator=rng), torch.randn(1, 16, generator=rng)
    found = pipe(
        prompt_embeds=prompt, pooled_prompt_embeds=pooled, num_inference_steps=2, height=size, width=size,
        output_type="pt", guidance_scale=0.0, generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    return found.images
