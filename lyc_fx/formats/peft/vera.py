"""PEFT's VeRA: A and B once for the file, beside the model, and two vectors for each module."""

import re
from collections.abc import Mapping

from torch import Tensor

from lyc_fx.errors import BadAdapter

VECTORS = frozenset({"vera_lambda_b", "vera_lambda_d"})
MATRICES = ("vera_A", "vera_B")
PREFIX = "base_model."
"""What stands before those"""
_KEY = re.compile(r"base_model\.(vera_[AB])(\.[^.]+)?")
"""With or without the name of the adapter"""


def shared(key: str) -> str | None:
    """The suffix of a factor of all modules; None for other keys."""
    match = _KEY.fullmatch(key)
    return match and match[1]


def read(own: Mapping[str, Tensor], common: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module's vectors, and A and B as all modules have them. Raises BadAdapter for a file without these."""
    full = {**common, **own}
    missing = [name for name in MATRICES if name not in full]
    if missing:
        raise BadAdapter(
            f"the file has no {' and no '.join(missing)}, as PEFT saves it with save_projection=False, and draws them "
            "anew for a model's sizes: train with save_projection=True, or merge with PEFT: model.merge_and_unload()"
        )
    return full
