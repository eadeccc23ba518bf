"""The best approximation of a weight's change by one of a given rank, and how far off it is."""

from collections.abc import Sequence

import torch

from lyc_fx.errors import BadAdapter
from lyc_fx.families import Adapter
from lyc_fx.families.additive import Additive
from lyc_fx.families.locon import LoCon
from lyc_fx.families.tensors import matrix


def truncated(adapter: Adapter, shape: Sequence[int], rank: int) -> tuple[LoCon, float]:
    """`ΔW ≈ up @ down` of at most this rank by singular values, and `‖ΔW - up @ down‖ / ‖ΔW‖` (Frobenius norms).

    Raises BadAdapter for a family whose change depends on the weight.
    """
    if not isinstance(adapter, Additive) or not adapter.additive:
        raise BadAdapter(
            f"the change by {adapter.name} {adapter.variant} depends on the weight: it has no matrix to reduce"
        )
    delta = matrix(adapter.to(torch.float64).delta(shape))
    u, s, vh = torch.linalg.svd(delta, full_matrices=False)
    kept = min(rank, s.numel())
    root = s[:kept].sqrt()
    norm = float(s.square().sum().sqrt())
    error = float(s[kept:].square().sum().sqrt()) / norm if norm else 0.0
    up, down = u[:, :kept] * root, root[:, None] * vh[:kept]
    ones = [1 for _ in shape[2:]]
    return LoCon(up=up.reshape([*up.shape, *ones]), down=down.reshape([kept, *shape[1:]]), alpha=float(kept)), error
