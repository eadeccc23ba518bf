"""PEFT's `target_parameters`: factors of a parameter that is no module's weight, such as `experts.gate_up_proj`.

The key does not name the parameter. PEFT wraps a module once for each of its parameters, in the order in which the
module declares them: the first is innermost, `experts.base_layer.lora_A.weight`, the last `experts.lora_A.weight`.
The file does not hold that order. It is taken from the list in the configuration; where two parameters could be
taken for one another this would be a guess, and is refused.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.format import Source
from lyc_fx.formats.layouts import alpha_of, rank_of
from lyc_fx.formats.patterns import means
from lyc_fx.formats.texts import real, shown, table


def parameter(module: str, depth: int, source: Source) -> str | None:
    """The full name of the parameter that is wrapped at this depth; None where the module itself is adapted."""
    listed = _listed(module, source.config or {})
    at = len(listed) - 1 - depth
    return f"{module}.{listed[at]}" if at >= 0 else None


def targeted(module: str, config: Mapping[str, Any]) -> bool:
    """Whether this is the name of a parameter."""
    owner, _, name = module.rpartition(".")
    return name in _listed(owner, config)


def read(name: str, full: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
    """A `(E·r, in)` and B `(out, r·E)` of E experts as one pair for each: B's columns have the expert last.

    Raises BadAdapter where the rank is not the configuration's, and where the parameters cannot be told apart.
    """
    config, module = source.config or {}, name.rpartition(".")[0]
    missing = [factor for factor in ("lora_down.weight", "lora_up.weight") if factor not in full]
    if missing:
        others = ", ".join(_listed(module, config))
        raise BadAdapter(f"{', '.join(missing)} is not there, of one of the target_parameters {others} of {module}")
    down, up = full["lora_down.weight"], full["lora_up.weight"]
    _refuse_interchangeable(module, source)
    patterns = table(config.get("rank_pattern"), "rank_pattern")
    default = config.get("r") or rank_of(down)
    rank = int(real(next((r for p, r in patterns.items() if means(p, name)), default), "r"))
    if down.dim() != 2 or up.dim() != 2 or rank < 1 or down.shape[0] % rank or up.shape[1] != down.shape[0]:
        raise BadAdapter(f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} are not of rank {rank} per expert")
    count = down.shape[0] // rank
    alpha = torch.tensor(alpha_of((name,), config, rank), dtype=torch.float64)
    return {
        "experts_up": up.reshape(up.shape[0], rank, count).permute(2, 0, 1).contiguous(),
        "experts_down": down.reshape(count, rank, down.shape[1]),
        "alpha": alpha,
    }


def _refuse_interchangeable(module: str, source: Source) -> None:
    """Two parameters of the same in and out, in whichever order: the order of the list would decide unchecked."""
    stem, count = f"base_model.model.{module}", len(_listed(module, source.config or {}))
    sizes = []
    for depth in range(count):
        a, b = (source.shapes.get(f"{stem}{'.base_layer' * depth}.lora_{side}.weight", ()) for side in "AB")
        sizes.append({*a[1:], *b[:1]})
    if any(size == other for i, size in enumerate(sizes) for other in sizes[:i]):
        raise BadAdapter(
            f"which of the target_parameters {', '.join(_listed(module, source.config or {}))} is which cannot be "
            "told from their shapes: merge with PEFT: model.merge_and_unload()"
        )


def _listed(module: str, config: Mapping[str, Any]) -> list[str]:
    """The parameters of this module that the configuration lists."""
    listed = config.get("target_parameters") or ()
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise BadAdapter(f"target_parameters is {shown(listed)}, which is no list of names")
    pairs = [each.rpartition(".")[::2] for each in listed]
    return list(dict.fromkeys(leaf for owner, leaf in pairs if not owner or f".{module}".endswith(f".{owner}")))
