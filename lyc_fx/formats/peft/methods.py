"""Which of PEFT's methods and variants are read; the others are refused by name, instead of half understood."""

from collections.abc import Mapping
from typing import Any

from lyc_fx.errors import Unsupported

METHODS = ("LORA", "ADALORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT", "HRA", "VERA")
_VARIANTS = {
    "alora_invocation_tokens": "an activated LoRA acts on some tokens only",
    "arrow_config": "Arrow chooses among adapters by the input",
    "kasa_config": "KaSA changes the base weight",
    "layer_replication": "the model's layers are repeated: repeat them, and remove layer_replication from the file",
    "monteclora_config": "MonteCLoRA has further factors",
    "use_bdlora": "BD-LoRA's factors are blocks",
    "use_qalora": "QALoRA pools its input",
}
_RESIDUAL = ("pissa", "corda", "olora", "loftq", "lora_ga")
"""Initializations that take their start out of the base weight, so that the adapter is not for the plain one"""


def refuse_unreadable(name: str, config: Mapping[str, Any]) -> None:
    """Raise Unsupported for a method, variant or initialization whose effect lyc-fx would get wrong."""
    method = config.get("peft_type")
    if method is not None and method not in METHODS:
        raise Unsupported(
            f"{name}: is an adapter of PEFT's method {method}; lyc-fx reads {', '.join(METHODS)}. "
            "Merge it with PEFT: model.merge_and_unload()"
        )
    for option, reason in _VARIANTS.items():
        if config.get(option):
            raise Unsupported(f"{name}: {option} in adapter_config.json: {reason}, which lyc-fx does not do")
    start = str(config.get("init_lora_weights") or "").lower()
    if start.startswith(_RESIDUAL):
        raise Unsupported(
            f"{name}: init_lora_weights is {start}, which changes the base weights before training: save the adapter "
            "with path_initial_model_for_weight_conversion, which makes it one for the plain base"
        )
