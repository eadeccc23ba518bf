"""The checkpoint: names and shapes of the SDXL UNet, random bfloat16 weights, one safetensors file."""

import json
import math
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

SIZES: dict[str, dict[str, Any]] = {
    "full": {},
    "short": {"transformer_layers_per_block": (1, 1, 2)},
    "small": {"block_out_channels": (64, 128, 256), "attention_head_dim": (1, 2, 4), "cross_attention_dim": 512},
}
"""What differs from SDXL: `short` has fewer layers of the same sizes, `small` has the same layers a fifth as wide"""


def unet(size: str) -> nn.Module:
    """The UNet of this size without weights, on the meta device."""
    from diffusers import UNet2DConditionModel

    settings: dict[str, Any] = {
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
    with torch.device("meta"):
        return UNet2DConditionModel(**(settings | SIZES[size])).eval()


def shapes(size: str) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in sorted(unet(size).state_dict().items())}


def total(size: str) -> int:
    """Bytes of the weights in bfloat16."""
    return sum(2 * shape.numel() for shape in shapes(size).values())


def write(path: Path, size: str) -> None:
    """One tensor at a time, so it takes no memory to speak of; the same bytes each time."""
    layout = shapes(size)
    generator = torch.Generator().manual_seed(0)
    with path.open("wb") as file:
        _header(file, layout)
        for name, shape in layout.items():
            file.write(_random(name, shape, generator).view(torch.uint8).numpy().data)


def _header(file: BinaryIO, layout: dict[str, torch.Size]) -> None:
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in layout.items():
        start, end = end, end + 2 * shape.numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _random(name: str, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Weights as after training: 1/√fan-in, norms around 1, biases around 0; flat."""
    noise = torch.randn(shape.numel(), generator=generator)
    if len(shape) > 1:
        noise /= math.sqrt(shape[1:].numel())
    else:
        noise *= 0.1
        noise += float("norm" in name and name.endswith("weight"))
    return noise.bfloat16()
