"""Merging into quantized weights: dequantized, merged, and quantized again as they were."""

from collections.abc import Mapping
from contextlib import ExitStack
from math import isfinite

import torch
from torch import Tensor

from lyc_fx.base.quantizers import Quantized
from lyc_fx.binding.bound import Binding
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.merging.kept import Kept
from lyc_fx.model.weight_handle import Fill, WeightHandle

_LOST = 1 - 1e-6
"""What a change is as good as lost from on: at 1, the weight as it was is as near to the merged one"""


def merge_requantized(name: str, weight: Quantized, fill: Fill, undo: ExitStack, *, lossy: bool) -> Kept:
    """Put `Q(W')`, with `W' = round(W̃ + Σ change)` in float32, in the place of a quantized weight.

    `W̃` is the weight dequantized. Pushes onto `undo` what restores the old one. Returns what Q(W') keeps of W' - W̃; a
    weight that does not change stays as it is.

    Raises BadAdapter, unless `lossy`, where `‖Q(W') - W'‖ / ‖W' - W̃‖` is 1 or more, since the change is lost in what
    quantizing again has added then, even if all of it is kept; Unsupported where there is no Q.
    """
    base = weight.dequantized(torch.float32)
    merged = torch.empty_like(base, memory_format=torch.contiguous_format)
    fill(base, merged)
    change = _distance(merged, base)
    if change == 0:
        return Kept()
    before = weight.stored
    try:
        made = weight.requantized(merged)
    except Unsupported as error:
        raise Unsupported(f"{name} {error}") from error
    undo.callback(weight.put, before)
    weight.put(made)
    after = weight.dequantized(torch.float32)
    lost = _distance(after, merged) / change
    if (lost >= _LOST and not lossy) or not isfinite(lost):
        raise BadAdapter(
            f"{name}: quantized again as a {weight.kind}, the merged weight is {lost:.3g} times as far from what it "
            "should be as the adapter had moved it, so that its change is lost: run the adapter beside the layer with "
            "lyc_fx.attach, or merge before the model is quantized; lossy=True accepts the loss"
        )
    return Kept.of(base.double().flatten(), merged.flatten(), after.double().flatten())


def refuse_quantized(found: Mapping[str, WeightHandle], binding: Binding) -> None:
    """Raise Unsupported for adapters of quantized weights."""
    for name in binding.targets:
        held = found[name].quantized
        if held is not None:
            raise Unsupported(f"{name} {held.advice}")


def _distance(one: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(one - other, dtype=torch.float64))
