"""PEFT's `target_parameters`: factors of a parameter that is no module's weight, such as `experts.gate_up_proj`.

The key does not name the parameter. PEFT wraps a module once for each of its parameters, in the order in which the
module declares them: the first is innermost, `experts.base_layer.lora_A.weight`, the last `experts.lora_A.weight`.
The file does not hold that order, and the configuration's list need not have it: PEFT itself makes one out of a set,
without owners. So it is found by the factors' shapes; where two parameters could be taken for one another, that would
be a guess, and is refused.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.format import Source
from lyc_fx.formats.reading.layouts import alpha_of, rank_of
from lyc_fx.formats.reading.patterns import matches, means
from lyc_fx.formats.reading.texts import real, shown, table

Shape = tuple[int, ...]
_MOST = 4
"""Parameters of one module of which every order is tried"""


def parameter(module: str, depth: int, source: Source) -> str | None:
    """The full name of the parameter that is wrapped at this depth; None where the module itself is adapted."""
    name = _assigned(module, source).get(depth)
    return None if name is None else f"{module}.{name}"


def targeted(parameter: str, source: Source) -> bool:
    """Whether this is the full name of a parameter that is wrapped."""
    owner, _, name = parameter.rpartition(".")
    return name in _assigned(owner, source).values()


def read(name: str, full: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
    """A `(E·r, in)` and B `(out, r·E)` of E experts as one pair for each: B's columns have the expert last.

    Raises BadAdapter where the rank is not the configuration's, and where the parameters cannot be told apart.
    """
    config, module = source.config or {}, name.rpartition(".")[0]
    missing = [factor for factor in ("lora_down.weight", "lora_up.weight") if factor not in full]
    if missing:
        others = ", ".join(_listed(module, source))
        raise BadAdapter(f"{', '.join(missing)} is not there, of one of the target_parameters {others} of {module}")
    down, up = full["lora_down.weight"], full["lora_up.weight"]
    _refuse_interchangeable(module, source)
    rank = _rank(name, config, rank_of(down))
    if down.dim() != 2 or up.dim() != 2 or rank < 1 or down.shape[0] % rank or up.shape[1] != down.shape[0]:
        raise BadAdapter(f"lora_A {tuple(down.shape)} and lora_B {tuple(up.shape)} are not of rank {rank} per expert")
    count = down.shape[0] // rank
    alpha = torch.tensor(alpha_of((name,), config, rank), dtype=torch.float64)
    return {
        "experts_up": up.reshape(up.shape[0], rank, count).permute(2, 0, 1).contiguous(),
        "experts_down": down.reshape(count, rank, down.shape[1]),
        "alpha": alpha,
    }


def _rank(name: str, config: Mapping[str, Any], default: int) -> int:
    patterns = table(config.get("rank_pattern"), "rank_pattern")
    return int(real(next((r for p, r in patterns.items() if means(p, name)), config.get("r") or default), "r"))


def _refuse_interchangeable(module: str, source: Source) -> None:
    """Raise BadAdapter for two parameters of the same in and out, of which nothing says which is which."""
    names = _assigned(module, source).values()
    sides = [{*a[1:], *b[:1]} for a, b in _wraps(module, source)]
    alike = any(own == other for i, own in enumerate(sides) for other in sides[:i])
    if alike and not _gated(tuple(names), sides):
        raise BadAdapter(
            f"which of the target_parameters {', '.join(_listed(module, source))} is which cannot be "
            "told from their shapes: merge with PEFT: model.merge_and_unload()"
        )


def _assigned(module: str, source: Source) -> dict[int, str]:
    """The parameter at each depth, the outermost being 0: as listed, or the one other order that the shapes allow."""
    names, wraps = _listed(module, source), _wraps(module, source)
    if not names or not wraps:
        return {}
    count = min(len(names), len(wraps))  # where there are more wraps, the module itself is adapted inside
    as_listed = tuple(names[::-1][:count])
    tried = permutations(names, count) if len(names) <= _MOST else [as_listed]
    possible = [order for order in tried if _possible(module, order, wraps[:count], source)]
    sides = [{*a[1:], *b[:1]} for a, b in wraps[:count]]
    fitting = [order for order in possible if _gated(order, sides)] or possible
    chosen = as_listed if as_listed in fitting or not fitting else fitting[0]
    return dict(enumerate(chosen))


def _possible(module: str, order: Sequence[str], wraps: Sequence[tuple[Shape, Shape]], source: Source) -> bool:
    """Whether each parameter has its rank, and all have as many experts."""
    counts: set[float] = set()
    for name, (a, _) in zip(order, wraps, strict=True):
        rank = _rank(f"{module}.{name}", source.config or {}, a[0] if a else 1)
        counts.add(a[0] / rank if a and rank else 0.0)
    return len(counts) == 1 and counts.pop().is_integer()


def _gated(order: Sequence[str], sides: Sequence[set[int]]) -> bool:
    """Whether these are, in this order, the fused `gate_up_proj` of sides H and 2·I, and `down_proj` of I and H."""
    if set(order) != {"gate_up_proj", "down_proj"}:
        return False
    fused, down = (sides[order.index(name)] for name in ("gate_up_proj", "down_proj"))
    return any(
        {width, inner // 2} == down and inner % 2 == 0 for width in fused for inner in fused if fused == {width, inner}
    )


def _wraps(module: str, source: Source) -> list[tuple[Shape, Shape]]:
    """The shapes of A and B at each depth of a module, the outermost first."""
    found: list[tuple[Shape, Shape]] = []
    while len(found) <= _MOST:
        stem = f"base_model.model.{module}{'.base_layer' * len(found)}"
        a, b = (source.shapes.get(f"{stem}.lora_{side}.weight") for side in "AB")
        if a is None or b is None:
            break
        found.append((a, b))
    return found


def _listed(module: str, source: Source) -> list[str]:
    """The parameters of this module that the configuration lists. One without an owner may be of any module that the
    configuration does not name for itself."""
    config = source.config or {}
    listed = config.get("target_parameters") or ()
    if not isinstance(listed, (list, tuple)) or not all(isinstance(each, str) for each in listed):
        raise BadAdapter(f"target_parameters is {shown(listed)}, which is no list of names")
    pairs = [each.rpartition(".")[::2] for each in listed]
    own = dict.fromkeys(leaf for owner, leaf in pairs if owner and f".{module}".endswith(f".{owner}"))
    if len(own) >= len(_wraps(module, source)) or _is_target(module, config.get("target_modules")):
        return list(own)
    return list(own | dict.fromkeys(leaf for owner, leaf in pairs if not owner))


def _is_target(module: str, targets: object) -> bool:
    """Whether the configuration names the module itself: a list of ends of names, or a pattern."""
    if isinstance(targets, str):
        return matches(targets, module)
    return isinstance(targets, (list, tuple)) and any(f".{module}".endswith(f".{each}") for each in targets)
