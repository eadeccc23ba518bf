"""Names in memory of the classes of transformers 5, for where the library is not installed or does not know a class.

By `model_type` of config.json, and only of types whose checkpoints call something otherwise.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

Rules = tuple[tuple[str, str], ...]
"""A pattern in a stored name, and what it becomes; applied in order"""

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
    """What the class calls the parameters, to the names that are stored; only those that differ.

    A name that is stored is that tensor's own, and one that two would have is none's.
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
