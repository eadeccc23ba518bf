"""Tiny models of transformers whose names in memory are not those of their checkpoints, or that have experts."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

TEXT = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            vocab_size=40, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
IMAGE = dict(
    hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
)
IDS = torch.tensor([[1, 5, 9, 4, 7]])
PIXELS = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@dataclass(frozen=True)
class Model:
    make: Callable[[], nn.Module]
    inputs: dict[str, Tensor]
    old: tuple[str, str]
    """A module as a checkpoint calls it, and as the class does"""

    def build(self) -> Any:
        torch.manual_seed(0)
        model: Any = self.make().double().eval()
        model.set_experts_implementation("eager")  # the others do not run in float64
        return model

    def logits(self, model: Any) -> Tensor:
        with torch.no_grad():
            return model(**self.inputs).logits


def text(config: Any, **more: Any) -> Any:
    return config(**{**TEXT, **more})


def trained(model: nn.Module, folder: Path, **settings: Any) -> Any:
    """PEFT's model, with random factors for what the settings target, saved."""
    import peft

    config = peft.LoraConfig(r=2, lora_alpha=3, **settings)
    theirs = peft.get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter) / 4)
    theirs.save_pretrained(folder)
    return theirs


MODELS = {
    "ViT": Model(
        lambda: hf.ViTForImageClassification(hf.ViTConfig(**IMAGE)), {"pixel_values": PIXELS},
        ("vit.encoder.layer.0.attention.attention.query", "vit.layers.0.attention.q_proj"),
    ),
    "DINOv2": Model(
        lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**{**IMAGE, "mlp_ratio": 2})), {"pixel_values": PIXELS},
        ("dinov2.encoder.layer.0.attention.attention.value", "dinov2.encoder.layer.0.attention.v_proj"),
    ),
    "Qwen3-MoE": Model(
        lambda: hf.Qwen3MoeForCausalLM(text(hf.Qwen3MoeConfig, head_dim=8, moe_intermediate_size=12, num_experts=3,
                                            num_experts_per_tok=2, decoder_sparse_step=1)), {"input_ids": IDS},
        ("model.layers.0.self_attn.q_proj", "model.layers.0.self_attn.q_proj"),
    ),
    "Mixtral": Model(
        lambda: hf.MixtralForCausalLM(text(hf.MixtralConfig, num_local_experts=3)), {"input_ids": IDS},
        ("model.layers.0.block_sparse_moe.gate", "model.layers.0.mlp.gate"),
    ),
    "GPT-OSS": Model(
        lambda: hf.GptOssForCausalLM(text(hf.GptOssConfig, head_dim=8, num_local_experts=3, num_experts_per_tok=2)),
        {"input_ids": IDS},
        ("model.layers.0.self_attn.k_proj", "model.layers.0.self_attn.k_proj"),
    ),
    "Gemma 3": Model(
        lambda: hf.Gemma3ForConditionalGeneration(hf.Gemma3Config(
            text_config=dict(TEXT, head_dim=8), vision_config=dict(IMAGE, model_type="siglip_vision_model"),
            mm_tokens_per_image=4)), {"input_ids": IDS},
        ("language_model.model.layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj"),
    ),
    "Qwen2.5-VL": Model(
        lambda: hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(
            text_config=dict(TEXT, rope_scaling={"type": "mrope", "mrope_section": [1, 1, 2]}),
            vision_config=dict(depth=1, hidden_size=16, intermediate_size=24, num_heads=2, out_hidden_size=16))),
        {"input_ids": IDS},
        ("model.layers.0.self_attn.o_proj", "model.language_model.layers.0.self_attn.o_proj"),
    ),
}  # fmt: skip
