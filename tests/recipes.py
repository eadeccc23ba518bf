"""What the README's recipes are run on: tiny models and adapters under the names that stand there."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor


def lora(path: Path, shapes: dict[str, tuple[int, int]], seed: int = 0) -> None:
    """A file with factors of rank 2, by module."""
    rng, tensors = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for module, (height, width) in shapes.items():
        tensors[f"{module}.lora_up.weight"] = torch.randn(height, 2, generator=rng) / 4
        tensors[f"{module}.lora_down.weight"] = torch.randn(2, width, generator=rng) / 4
        tensors[f"{module}.alpha"] = torch.tensor(3.0)
    save_file(tensors, path)


def sdxl_file(folder: Path) -> None:
    """A few of a single-file SDXL checkpoint's tensors, and two files of kohya's."""
    torch.manual_seed(0)
    unet, text = "input_blocks.4.1.transformer_blocks.0.attn1.to_q", "text_model.encoder.layers.0.self_attn.q_proj"
    base = {
        f"model.diffusion_model.{unet}.weight": torch.randn(16, 12).half(),
        f"conditioner.embedders.0.transformer.{text}.weight": torch.randn(10, 8).half(),
        "first_stage_model.decoder.conv_in.weight": torch.randn(4, 4, 3, 3).half(),
    }
    save_file(base, folder / "sd_xl_base_1.0.safetensors")
    names = {
        f"lora_unet_{unet.replace('.', '_')}": (16, 12),
        f"lora_te1_{text.replace('.', '_')}": (10, 8),
    }
    lora(folder / "style.safetensors", names)
    lora(folder / "detail.safetensors", dict([next(iter(names.items()))]), seed=1)


def sdxl_folder(folder: Path) -> None:
    """A pipeline of diffusers, saved, and two files."""
    from tests.tiny_pipelines import sdxl

    pipe = sdxl()
    pipe.save_pretrained(folder / "stable-diffusion-xl")
    attention = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
    names = {f"lora_unet_{attention}": (32, 32), "lora_te2_text_model_encoder_layers_1_mlp_fc1": (20, 12)}
    lora(folder / "style.safetensors", names)
    lora(folder / "detail.safetensors", {f"lora_unet_{attention}": (32, 32)}, seed=1)


def llama(folder: Path) -> None:
    """A language model, saved, and an adapter of PEFT for it."""
    import peft
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder / "llama")
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"]))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data.normal_()
    adapted.save_pretrained(folder / "my-lora")


def deployment(folder: Path) -> None:
    """An adapter for the two layers of the example."""
    lora(folder / "style.safetensors", {"lycoris_0": (15, 6), "lycoris_2": (4, 15)})


WORLDS: dict[str, Callable[[Path], None]] = {
    "An SDXL checkpoint in one file": sdxl_file,
    "A diffusers folder": sdxl_folder,
    "A live pipeline": sdxl_folder,
    "A language model with a PEFT directory": llama,
    "Deployment": deployment,
}
"""By the recipe's heading"""
