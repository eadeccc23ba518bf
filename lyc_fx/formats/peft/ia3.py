"""PEFT's IA3: a factor per input channel of feedforward modules, per output (bias included) of the others."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.layouts import computable
from lyc_fx.formats.reading.patterns import matches
from lyc_fx.formats.reading.texts import shown


def read(module: str, scale: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`W · l` as `W · (1 + w)`; the difference in float64, so that l comes back exactly."""
    w = computable(scale, "ia3_l").double() - 1
    if _feedforward(module, config):
        return {"weight": w, "on_input": torch.tensor(1)}
    return {"weight": w, "on_input": torch.tensor(0), "gain_b": w.flatten()}


def _feedforward(module: str, config: Mapping[str, Any]) -> bool:
    """As in PEFT: a text is a regular expression for the whole name, a list holds ends of names."""
    listed = config.get("feedforward_modules") or ()
    if isinstance(listed, str):
        return matches(listed, module)
    if not isinstance(listed, (list, tuple, set, frozenset)) or not all(isinstance(each, str) for each in listed):
        raise BadAdapter(f"feedforward_modules is {shown(listed)}, which is no list of names")
    return any(module.endswith(name) for name in listed)
