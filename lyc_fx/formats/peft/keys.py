"""Reading the keys of a PEFT file: which module a key is of, and which factor it is. (`writers` has the way back.)"""

import re

from lyc_fx.formats.format import Source
from lyc_fx.formats.peft import experts

PREFIX = "base_model.model."
EMBEDDED = ("lora_embedding_A", "lora_embedding_B")
TOKENS = "trainable_tokens_delta"
FACTORS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_A": "lora_down.weight",
    "lora_B": "lora_up.weight",
    "lora_B.bias": "diff_b",
    "lora_E": "lora_E",
    "lora_magnitude_vector": "dora_scale",
    "ia3_l": "ia3_l",
    "oft_R": "packed_R",
    "oft_embedding_R": "packed_embedding_R",
    **{name: name for name in (*EMBEDDED, "boft_R", "boft_s", "hra_u")},
    **{f"vera_{name}": f"vera_{name}" for name in ("A", "B", "lambda_b", "lambda_d")},
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
LYCORIS = ("alpha", "dora_scale")
"""LyCORIS's own keys, which some tools write beside these"""
_MARKS = tuple({name.partition("_")[0] + "_" for name in FACTORS})
_NAMED = re.compile(
    r"\.(lora_[ABE]|lora_embedding_[AB]|lora_magnitude_vector|hada_\w+|lokr_\w+|ia3_l|oft_R|boft_[Rs]|hra_u|vera_\w+)"
    r"\.(?!weight$|bias$)[^.]+(?=\.weight$|\.bias$|$)"
)
"""A factor with the name of its adapter, as in a model's state dict"""
_ENDINGS = ("", ".weight", ".default", ".default.weight")
_WITHOUT = (".default.", ".modules_to_save.")
"""Names of PEFT's own wrappers, which older versions leave in keys"""


def parse(key: str, source: Source) -> tuple[str, str] | None:
    """The module and the suffix of a key; None where it is not PEFT's, or not of a factor that lyc-fx knows.

    A key without a factor, such as `base_model.model.head.weight`, is a tensor that replaces the model's
    (`modules_to_save`, `bias`). Only beside a configuration: without one it may be any checkpoint's.
    """
    if not key.startswith(PREFIX):
        return None
    path = _NAMED.sub(r".\1", f".{key.removeprefix(PREFIX)}".removesuffix(".default"))
    for wrapper in _WITHOUT:
        path = path.replace(wrapper, ".")
    for tail in (path, path.removesuffix(".weight")):
        for factor, suffix in FACTORS.items():
            if tail.endswith(f".{factor}"):
                return _module(tail.removesuffix(f".{factor}"), source), suffix
    stem, _, own = key.rpartition(".")
    if own in LYCORIS and any(f"{stem}.{f}{e}" in source.keys for f in FACTORS for e in _ENDINGS):
        return _module(path.removesuffix(f".{own}"), source), own
    plain = path.replace(".base_layer.", ".")[1:]
    if plain.endswith(f".token_adapter.{TOKENS}"):
        return plain.removesuffix(f".token_adapter.{TOKENS}"), TOKENS
    if source.config is None or plain.endswith("num_batches_tracked"):
        return None
    if any(part.startswith(_MARKS) for part in plain.split(".")[-2:]):
        return None
    module, _, leaf = plain.rpartition(".")
    return (module, f"set_{leaf}") if leaf in ("weight", "bias") else (plain, "set_weight")


def _module(path: str, source: Source) -> str:
    """The module of a factor; for a `target_parameters` of it, that parameter."""
    module = f"{path}.".replace(".base_layer.", ".").strip(".")
    depth = 0
    while path.endswith(".base_layer"):
        path, depth = path.removesuffix(".base_layer"), depth + 1
    return experts.parameter(module, depth, source) or module
