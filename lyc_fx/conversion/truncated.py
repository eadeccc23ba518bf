"""Approximating a weight's change by one of a given rank."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import BadAdapter


def truncate(adapter: Adapter, shape: Sequence[int], rank: int) -> tuple[LoCon, float]:
    """Return the best `ΔW ≈ up @ down` of at most this rank, and its error `‖ΔW - up @ down‖ / ‖ΔW‖` (Frobenius norms).

    `shape` is that of the weight, `(out, in/groups, *kernel)`; then up is `(out, r, 1, …)`, and down
    `(r, in/groups, *kernel)`.
    Raises BadAdapter for a family whose change depends on the weight.
    """
    if not isinstance(adapter, Additive) or not adapter.additive:
        raise BadAdapter(
            f"the change by {adapter.name} {adapter.variant} depends on the weight, so its rank cannot be reduced"
        )
    u, s, vh = _decomposed(adapter, shape)
    kept = min(rank, s.numel())
    root = s[:kept].sqrt()
    norm = float(s.square().sum().sqrt())
    error = float(s[kept:].square().sum().sqrt()) / norm if norm else 0.0
    up, down = u[:, :kept] * root, root[:, None] * vh[:kept]
    ones = [1 for _ in shape[2:]]
    return LoCon(up=up.reshape([*up.shape, *ones]), down=down.reshape([kept, *shape[1:]]), alpha=float(kept)), error


def _decomposed(adapter: Additive, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of ΔW as a matrix `(out, in/groups · κ)`, in float64.

    For LoRA it is computed from the factors, by QR and a matrix of the size of their rank.
    """
    if isinstance(adapter, LoCon) and adapter.mid is None:
        up, down = matrix(adapter.up.double()), matrix(adapter.down.double())
        left, upper = torch.linalg.qr(up)
        right, lower = torch.linalg.qr(down.t())
        u, s, vh = torch.linalg.svd(upper @ lower.t() * adapter.scale)
        return left @ u, s, vh @ right.t()
    return torch.linalg.svd(matrix(adapter.to(torch.float64).delta(shape)), full_matrices=False)
