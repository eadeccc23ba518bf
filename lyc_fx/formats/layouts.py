"""What PEFT and diffusers have in common: where alpha is, and how factors lie."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor


def alpha_of(module: str, config: Mapping[str, Any], rank: int) -> float:
    """The alpha that gives `alpha / rank` the scale which PEFT uses for a module of this rank.

    The first pattern that matches counts, as in PEFT: `re.match(r"(.*\\.)?(<pattern>)$", module)`.
    """
    patterns = config.get("alpha_pattern") or {}
    default = config.get("lora_alpha", config.get("alpha", rank))
    alpha = float(next((a for p, a in patterns.items() if re.match(rf"(.*\.)?({p})$", module)), default))
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def lycoris_layouts(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's layouts as LyCORIS's: a magnitude per output stands first, a bias of `lora_B` is scaled like it."""
    magnitude, down, bias = group.get("dora_scale"), group.get("lora_down.weight"), group.get("diff_b")
    if magnitude is not None and magnitude.dim() > 2 and magnitude.shape[0] == 1:
        group["dora_scale"] = magnitude.transpose(0, 1)
    if bias is not None and down is not None and "alpha" in group:
        group["diff_b"] = bias * (float(group["alpha"]) / down.shape[0])
    return group
