"""The same algorithms, as PEFT and LyCORIS run them unmerged."""

import copy
import logging
from typing import Any

from torch import nn

PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA 16": ("LoraConfig", {"r": 16}),
    "LoHa 4": ("LoHaConfig", {"r": 4}),
    "LoHa 8": ("LoHaConfig", {"r": 8}),
    "LoKr 8, full": ("LoKrConfig", {"r": 10000, "decompose_factor": 8}),
    "LoKr 8, rank 16": ("LoKrConfig", {"r": 16, "decompose_factor": 8}),
    "DoRA 16": ("LoraConfig", {"r": 16, "use_dora": True}),
    "Diag-OFT 32": ("OFTConfig", {"oft_block_size": 32}),
}
LYCORIS: dict[str, dict[str, Any]] = {
    "LoRA 16": {"algo": "lora", "linear_dim": 16, "conv_dim": 16},
    "LoHa 4": {"algo": "loha", "linear_dim": 4, "conv_dim": 4},
    "LoHa 8": {"algo": "loha", "linear_dim": 8, "conv_dim": 8},
    "LoKr 8, full": {"algo": "lokr", "linear_dim": 100000, "conv_dim": 100000, "factor": 8, "full_matrix": True},
    "LoKr 8, rank 16": {"algo": "lokr", "linear_dim": 16, "conv_dim": 16, "factor": 8},
    "DoRA 16": {"algo": "lora", "linear_dim": 16, "conv_dim": 16, "dora_wd": True},
    "Diag-OFT 32": {"algo": "diag-oft", "linear_dim": 32, "conv_dim": 32},
    "BOFT 16": {"algo": "boft", "linear_dim": 8, "conv_dim": 8},
    "GLoRA 16": {"algo": "glora", "linear_dim": 16, "conv_dim": 16},
    "T-LoRA 16": {"algo": "tlora", "linear_dim": 16, "conv_dim": 16},
    "Tucker 16": {"algo": "lora", "linear_dim": 16, "conv_dim": 16, "use_tucker": True},
}


def peft(model: nn.Module, algorithm: str) -> nn.Module | None:
    import peft as library

    if algorithm not in PEFT:
        return None
    kind, options = PEFT[algorithm]
    layers = [name for name, each in model.named_modules() if isinstance(each, (nn.Linear, nn.Conv2d))]
    config = getattr(library, kind)(target_modules=layers, **options)
    return _ready(library.inject_adapter_in_model(config, copy.deepcopy(model)))


def lycoris(model: nn.Module, algorithm: str) -> nn.Module | None:
    import lycoris as library

    logging.getLogger("LyCORIS").setLevel(logging.ERROR)
    if algorithm not in LYCORIS:
        return None
    model = copy.deepcopy(model)
    network = library.create_lycoris(model, 1.0, linear_alpha=8, conv_alpha=8, **LYCORIS[algorithm])
    network.apply_to()
    _ready(network)  # its modules are in the layers' forward, and not in the model
    return _ready(model)


def _ready(model: nn.Module) -> nn.Module:
    """Factors that start with zeros would spare some libraries work."""
    for parameter in model.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return model.eval().requires_grad_(False)
