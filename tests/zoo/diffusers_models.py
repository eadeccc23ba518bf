"""Small models of diffusers, of the real classes, with the options of the checkpoints that they stand for."""

from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from tests.zoo.case import Case

_BATCH, _HEIGHT, _WIDTH, _TEXT = (2, 3), (8, 12), (12, 8), (5, 7)


def _sd15() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )


def _sd15_inputs(size: int) -> dict[str, Any]:
    return {
        "sample": torch.randn(_BATCH[size], 4, _HEIGHT[size], _WIDTH[size]),
        "timestep": torch.tensor(11 + size),
        "encoder_hidden_states": torch.randn(_BATCH[size], _TEXT[size], 24),
    }


def _sdxl() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=24,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )


def _sdxl_inputs(size: int) -> dict[str, Any]:
    return {
        **_sd15_inputs(size),
        "timestep": torch.arange(_BATCH[size]) + 11,
        "added_cond_kwargs": {
            "text_embeds": torch.randn(_BATCH[size], 16),
            "time_ids": torch.randint(0, 8, (_BATCH[size], 6)),
        },
    }


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )


def _flux_inputs(size: int) -> dict[str, Any]:
    height, width = _HEIGHT[size] // 4, _WIDTH[size] // 4 + size
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return {
        "hidden_states": torch.randn(_BATCH[size], height * width, 4),
        "encoder_hidden_states": torch.randn(_BATCH[size], _TEXT[size], 24),
        "pooled_projections": torch.randn(_BATCH[size], 16),
        "timestep": torch.rand(_BATCH[size]),
        "img_ids": torch.stack([torch.zeros_like(rows), rows, columns], -1).reshape(-1, 3).float(),
        "txt_ids": torch.zeros(_TEXT[size], 3),
        "guidance": torch.full((_BATCH[size],), 3.5),
    }


def _sd3() -> SD3Transformer2DModel:
    return SD3Transformer2DModel(
        sample_size=16,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=24,
        pooled_projection_dim=16,
        pos_embed_max_size=16,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )


def _sd3_inputs(size: int) -> dict[str, Any]:
    return {
        "hidden_states": torch.randn(_BATCH[size], 4, _HEIGHT[size], _WIDTH[size]),
        "encoder_hidden_states": torch.randn(_BATCH[size], _TEXT[size], 24),
        "pooled_projections": torch.randn(_BATCH[size], 16),
        "timestep": torch.arange(_BATCH[size]) + 11,
    }


def _vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(16, 16),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
    )


def _vae_inputs(size: int) -> dict[str, Any]:
    return {"sample": torch.randn(_BATCH[size], 3, _HEIGHT[size], _WIDTH[size])}


CASES = (
    Case("sd15 unet", _sd15, _sd15_inputs),
    Case("sdxl unet", _sdxl, _sdxl_inputs),
    Case("flux", _flux, _flux_inputs),
    Case("sd3", _sd3, _sd3_inputs),
    Case("vae", _vae, _vae_inputs),
)
