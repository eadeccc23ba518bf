"""Names in the classes of transformers 5, for use without the library, or for a class that it does not have.

The rules are by `model_type` of config.json, for types whose checkpoints use other names than the class.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Rules = tuple[tuple[str, str], ...]
"""Regular expressions in stored names, with their replacements, applied in order"""

_COMPOSITE: Rules = (
    (r"^language_model\.lm_head\.", "lm_head."),
    (r"^language_model\.(?:model\.)?", "model.language_model."),
    (r"^((?:vision|image|video)_(?:tower|model)|multi_modal_projector|image_newline)(?=\.|$)", r"model.\1"),
)
_QWEN_VL: Rules = (
    (r"^visual\.", "model.visual."),
    (r"^model\.(?!language_model\.|visual\.)", "model.language_model."),
)
_ATTENTION: Rules = (
    (r"\.attention\.attention\.query\.", ".attention.q_proj."),
    (r"\.attention\.attention\.key\.", ".attention.k_proj."),
    (r"\.attention\.attention\.value\.", ".attention.v_proj."),
    (r"\.attention\.output\.dense\.", ".attention.o_proj."),
)
_VIT: Rules = (
    (r"(^|\.)encoder\.layer\.", r"\1layers."),
    *_ATTENTION,
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
)
_KNOWN: tuple[tuple[tuple[str, ...], Rules], ...] = (
    (("aya_vision", "gemma3", "llava", "mistral3", "mllama", "paligemma", "vipllava"), _COMPOSITE),
    (("llava_next", "llava_next_video", "llava_onevision", "video_llava"), _COMPOSITE),
    (("qwen2_vl", "qwen2_5_vl"), _QWEN_VL),
    (("vit",), _VIT),
    (("dinov2", "dinov2_with_registers"), _ATTENTION),
    (("mixtral", "minimax"), ((r"\.block_sparse_moe\.", ".mlp."),)),
    (("gpt_neox",), ((r"^embed_out\.", "lm_head."),)),
)
TYPES = frozenset(each for types, _ in _KNOWN for each in types)
"""Every `model_type` with rules"""


def known_names(config: Mapping[str, Any], stored: Iterable[str]) -> dict[str, str]:
    """Return a mapping from names in the model's class to the `stored` names, where these differ.

    Left out are names that are themselves stored, and those to which two stored names would be mapped.
    """
    rules = next((own for types, own in _KNOWN if config.get("model_type") in types), ())
    every = list(stored)
    others = {name: _renamed(name, rules) for name in every}
    count = Counter(others.values())
    return {
        other: name for name, other in others.items() if other != name and count[other] == 1 and other not in others
    }


def _renamed(name: str, rules: Rules) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name
