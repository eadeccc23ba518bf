"""kohya's OFT (sd-scripts `networks/oft.py`) has the keys and the formula of LyCORIS's Diag-OFT."""

import pytest
import torch
from torch import Tensor

import lyc_fx
from lyc_fx.algorithms.oft import DiagOFT


def rotated(blocks: Tensor, alpha: float, weight: Tensor, strength: float) -> Tensor:
    """kohya's: ‖Q‖ clamped to alpha · out, both norms with 1e-8; R = (I + Q)(I - Q)⁻¹; Rᵀ on each block of rows."""
    skew = blocks - blocks.transpose(1, 2)
    norm = skew.norm()
    skew = skew * ((norm.clamp(max=alpha * weight.shape[0]) + 1e-8) / (norm + 1e-8))
    rows = []
    for q, block in zip(skew, weight.flatten(1).split(blocks.shape[1]), strict=True):
        identity = torch.eye(len(q), dtype=q.dtype)
        turned = (identity + q) @ torch.linalg.inv(identity - q)
        rows.append((strength * (turned - identity) + identity).t() @ block)
    return torch.cat(rows).reshape(weight.shape)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("shape", [(15, 7), (15, 4, 3, 2)])
def test_the_effect_is_kohya_s(shape: tuple[int, ...], alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randn(5, 3, 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(shape, generator=generator, dtype=torch.float64)
    [entry] = lyc_fx.load({"x.oft_blocks": blocks, "x.alpha": torch.tensor(alpha, dtype=torch.float64)}).entries
    assert isinstance(entry.adapter, DiagOFT)
    for strength in (0.7, 1.0):
        want = rotated(blocks, alpha, weight, strength)
        torch.testing.assert_close(entry.adapter.apply(weight, strength), want, rtol=1e-7, atol=1e-7)
