"""Capture of models in their real sizes, without weights: seconds, nodes, layers, and peak memory of the process.

    python benchmarks/capture_sizes.py [--models "Llama 8B" …] [--fixed] [--json]

Needs diffusers and transformers. Each model is captured in a process of its own, once.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import lyc_fx
from lyc_fx.binding.report import table
from lyc_fx.graph.layers import sites

Example = tuple[nn.Module, dict[str, torch.Tensor | dict[str, torch.Tensor]]]


def _sd15() -> Example:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8)
    return model, {
        "sample": torch.empty(2, 4, 64, 64),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, 77, 768),
    }


def _sdxl() -> Example:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=2048,
        transformer_layers_per_block=(1, 2, 10),
        attention_head_dim=(5, 10, 20),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return model, {
        "sample": torch.empty(2, 4, 128, 128),
        "timestep": torch.empty(2),
        "encoder_hidden_states": torch.empty(2, 77, 2048),
        "added_cond_kwargs": {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)},
    }


def _flux() -> Example:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(guidance_embeds=True), {
        "hidden_states": torch.empty(2, 4096, 64),
        "encoder_hidden_states": torch.empty(2, 512, 4096),
        "pooled_projections": torch.empty(2, 768),
        "timestep": torch.empty(2),
        "img_ids": torch.empty(4096, 3),
        "txt_ids": torch.empty(512, 3),
        "guidance": torch.empty(2),
    }


def _llama() -> Example:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    return LlamaForCausalLM(config), {"input_ids": torch.empty(2, 64, dtype=torch.long)}


MODELS: dict[str, Callable[[], Example]] = {
    "SD 1.5 UNet": _sd15,
    "SDXL UNet": _sdxl,
    "FLUX.1-dev": _flux,
    "Llama 8B": _llama,
}


def measure(name: str, fixed: bool) -> dict[str, Any]:
    """One row of the table."""
    with torch.device("meta"):
        model, inputs = MODELS[name]()
    started = time.perf_counter()
    captured = lyc_fx.capture(model.eval(), (), inputs, None if fixed else "auto")
    seconds = time.perf_counter() - started
    return {
        "model": name,
        "parameters": f"{sum(p.numel() for p in captured.parameters()) / 1e9:.2f} B",
        "sizes": "fixed" if fixed else "dynamic",
        "seconds": f"{seconds:.1f}",
        "nodes": len(captured.graph.nodes),
        "layers": len(list(sites(captured.graph))),
        "peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (2**20 if sys.platform == "darwin" else 2**10),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--fixed", action="store_true", help="capture with fixed sizes")
    parser.add_argument("--json", action="store_true", help="rows as JSON")
    chosen = parser.parse_args()
    fresh = multiprocessing.get_context("spawn")
    rows = []
    for name in chosen.models:
        with fresh.Pool(1) as pool:
            rows.append(pool.apply(measure, (name, chosen.fixed)))
    print(json.dumps(rows) if chosen.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
