"""What PEFT and diffusers have in common: where alpha is, and how factors lie."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from lyc_fx.adapters.numbers import number
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.patterns import means
from lyc_fx.formats.reading.texts import real, table

INNER = ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
"""Factors `(r, …)`, any of which tells a module's rank"""


def with_trained_scale(group: dict[str, Tensor], config: Mapping[str, Any], *names: str) -> dict[str, Tensor]:
    """The tensors of a module under LyCORIS's suffixes, with the scale that PEFT has for it: alpha / r.

    `names` are those that patterns may mean. PEFT scales LoKr also where both factors are full; then the scale goes
    into the first factor, since LyCORIS's formula has none there.
    """
    inner = next((group[name] for name in INNER if name in group), None)
    if inner is not None:
        return group | {"alpha": torch.tensor(alpha_of(names, config, rank_of(inner)), dtype=torch.float64)}
    if "lokr_w1" not in group or "lokr_w2" not in group:
        return group
    rank = real(_of_module("rank_pattern", names, config, config.get("r", 8)), "r")
    if rank <= 0:
        raise BadAdapter(f"r is {rank:g}")
    scale = alpha_of(names, config, rank) / rank
    return group if scale == 1 else group | {"lokr_w1": computable(group["lokr_w1"], "lokr_w1").double() * scale}


def alpha_of(names: Iterable[str], config: Mapping[str, Any], rank: float) -> float:
    """The alpha that gives `alpha / rank` the scale which PEFT uses for a module of this rank."""
    default = config.get("lora_alpha", config.get("alpha", rank))
    alpha = real(_of_module("alpha_pattern", names, config, default), "alpha")
    return alpha * rank**0.5 if config.get("use_rslora") else alpha


def _of_module(patterns: str, names: Iterable[str], config: Mapping[str, Any], default: object) -> object:
    """The first pattern that matches counts, as in PEFT: `re.match(r"(.*\\.)?(<pattern>)$", module)`."""
    given, known = table(config.get(patterns), patterns), list(names)
    return next((value for p, value in given.items() if any(means(p, name) for name in known)), default)


def lycoris_layouts(group: dict[str, Tensor]) -> dict[str, Tensor]:
    """PEFT's layouts as LyCORIS's: a magnitude per output stands first, a bias of `lora_B` is scaled like it.

    Of a `dora_scale` that is LyCORIS's own, and of its `diff_b`, this must not be asked.
    """
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
