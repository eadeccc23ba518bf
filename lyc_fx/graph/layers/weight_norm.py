"""Weights that a model computes from a direction and magnitudes."""

import torch
from torch import Tensor

COMPUTED = (torch.ops.aten._weight_norm.default,)
"""Operators whose result is a weight that the model computes from other parameters; argument 0 is its direction."""


def weight_norm_parts(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Direction and magnitude from which weight norm computes this weight; a zero row has any direction but zero."""
    magnitude = torch.norm_except_dim(weight, 2, dim)
    return torch.where(magnitude == 0, torch.ones_like(weight), weight), magnitude
