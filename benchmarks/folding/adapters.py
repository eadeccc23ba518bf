"""The adapters: made and saved by LyCORIS, for every Linear and Conv layer, with factors that are not zero."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from folding import base

_LORA = {"algo": "locon", "linear_dim": 16, "linear_alpha": 8, "conv_dim": 16, "conv_alpha": 8}
KINDS: dict[str, dict[str, Any]] = {
    "LoRA": _LORA,
    "LoHa": {"algo": "loha", "linear_dim": 8, "linear_alpha": 4, "conv_dim": 8, "conv_alpha": 4},
    "LoKr": _LORA | {"algo": "lokr", "factor": 8},
    "Tucker": _LORA | {"use_tucker": True},
    "DoRA": _LORA | {"dora_wd": True},
}
"""What LyCORIS is told. alpha is half the rank, so a forgotten scale shows."""
TITLES = {
    "LoRA": "LoRA (LoCon) r16",
    "LoHa": "LoHa r8",
    "LoKr": "LoKr factor 8, w2 of rank 16",
    "Tucker": "LoCon r16 with Tucker cores",
    "DoRA": "DoRA (LoCon r16)",
}


def loaded(checkpoint: Path, size: str) -> nn.Module:
    """The UNet with the checkpoint's weights, which stay in the mapped file until they are written to."""
    model = base.unet(size)
    model.load_state_dict(load_file(checkpoint), assign=True)
    return model


def network(model: nn.Module, kind: str) -> Any:
    """A fresh LyCORIS network for every Linear and Conv layer."""
    import lycoris

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    lycoris.LycorisNetwork.apply_preset({"target_name": [".*"], "target_module": []})
    return lycoris.create_lycoris(model, 1.0, **KINDS[kind])


def write(path: Path, checkpoint: Path, size: str, kind: str) -> int:
    """Save an adapter in float16; how many layers it has."""
    torch.manual_seed(1)
    made = network(loaded(checkpoint, size), kind)
    made.apply_to()  # only then does LyCORIS's network know its modules
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("dora_scale"):
                parameter.mul_(1 + 0.05 * torch.randn_like(parameter))
            elif not parameter.any():  # one factor of each product starts at zero
                parameter.normal_(std=0.05)
    made.save_weights(str(path), torch.float16, {})
    return len(made.loras)


def for_peft(adapter: Path, folder: Path, checkpoint: Path) -> str | None:
    """The same adapter as a PEFT directory, written by lyc-fx; or why PEFT has no such adapter."""
    import lyc_fx
    from lyc_fx.conversion import convert
    from lyc_fx.errors import LycFxError

    try:
        conversion = convert(lyc_fx.load(adapter), "peft", like=checkpoint)
    except LycFxError as error:
        return str(error).splitlines()[0]
    changed = next((made for made in conversion.modules if made.how), None)
    if changed is not None:  # the same weights, yet not the same adapter, so not the same work
        return f"PEFT cannot hold {changed.module}: it would be {' and '.join(changed.how)}"
    conversion.save(folder)
    return None
