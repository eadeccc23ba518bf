"""What PEFT and diffusers have in common: where alpha is, and how factors lie."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.families.adapter import number
from lyc_fx.formats.patterns import means
from lyc_fx.formats.texts import real, table


def alpha_of(module: str, config: Mapping[str, Any], rank: int) -> float:
    """The alpha that gives `alpha / rank` the scale which PEFT uses for a module of this rank.

    The first pattern that matches counts, as in PEFT: `re.match(r"(.*\\.)?(<pattern>)$", module)`.
    """
    patterns = table(config.get("alpha_pattern"), "alpha_pattern")
    default = config.get("lora_alpha", config.get("alpha", rank))
    alpha = real(next((a for p, a in patterns.items() if means(p, module)), default), "alpha")
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def lycoris_layouts(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's layouts as LyCORIS's: a magnitude per output stands first, a bias of `lora_B` is scaled like it."""
    magnitude, down, bias = group.get("dora_scale"), group.get("lora_down.weight"), group.get("diff_b")
    if magnitude is not None and magnitude.dim() > 2 and magnitude.shape[0] == 1:
        group["dora_scale"] = magnitude.transpose(0, 1)
    if bias is not None and down is not None and "alpha" in group:
        group["diff_b"] = computable(bias, "a bias") * (number(group["alpha"]) / rank_of(down))
    return group


def rank_of(inner: Tensor) -> int:
    """The rank of a factor `(r, …)`. Raises BadAdapter for one that is empty, or has no dimension."""
    if not inner.numel() or not inner.dim():
        raise BadAdapter(f"a factor has the shape {tuple(inner.shape)}: it has no rank")
    return inner.shape[0]


def computable(tensor: Tensor, what: str) -> Tensor:
    """A tensor that torch can compute with, which is not so for each float8. Raises BadAdapter for no real numbers."""
    if not tensor.is_floating_point():
        raise BadAdapter(f"{what} is stored as {tensor.dtype}; factors are floating-point numbers")
    return tensor if tensor.dtype.itemsize > 1 else tensor.float()
