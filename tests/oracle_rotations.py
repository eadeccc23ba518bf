"""The closed formulas of rotations and reflections, as dense matrices in float64, apart from the library's code."""

from collections.abc import Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]


def _rotations(blocks: Tensor, alpha: float | None, out: int, strength: float) -> list[Tensor]:
    """I + s (R - I) for each block, in the order of the flattened leading dimensions."""
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.square().sum().sqrt() + 1e-8
    if alpha and norm > alpha * out:
        skew = skew * (alpha * out / norm)
    identity = torch.eye(blocks.shape[-1], dtype=torch.float64)
    flat = skew.reshape(-1, *blocks.shape[-2:])
    return [identity + strength * ((identity + q) @ torch.linalg.inv(identity - q) - identity) for q in flat]


def _rescaled(w: Tensor, f: Factors, strength: float) -> Tensor:
    if "rescale" not in f:
        return w
    return torch.stack([row * (1 + strength * (r - 1)) for row, r in zip(w, f["rescale"].flatten(), strict=True)])


def oft(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    dense = torch.block_diag(*(r.t() for r in _rotations(f["oft_blocks"], alpha, w.shape[0], strength)))
    return _rescaled((dense @ w.flatten(1)).reshape(w.shape), f, strength)


def boft(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    stages, count, size, _ = f["oft_blocks"].shape
    rotations, rows = _rotations(f["oft_blocks"], alpha, w.shape[0], strength), w.flatten(1)
    for stage in range(stages):
        stride = 2**stage * size // 2
        # Row (c, g, k) of the weight stands at (c, k, g) among the rows that the blocks see.
        pairs = [(c, k) for c in range(len(w) // (2 * stride)) for k in range(stride)]
        order = [c * 2 * stride + g * stride + k for c, k in pairs for g in (0, 1)]
        turned = torch.block_diag(*rotations[stage * count : (stage + 1) * count]) @ rows[order]
        rows = torch.empty_like(rows)
        rows[order] = turned
    return _rescaled(rows.reshape(w.shape), f, strength)


def oft_input(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    blocks, terms = f["oft_R"], int(f["oft_terms"])
    count, size, columns = len(blocks), blocks.shape[-1], w[0].numel()
    identity, turns = torch.eye(size, dtype=torch.float64), []
    for b in blocks:
        q = b - b.t()
        norm, bound = q.square().sum().sqrt(), (alpha or 0) / count**0.5
        q = q * (bound / norm) if alpha and norm > bound else q
        powers = [torch.linalg.matrix_power(q, k) for k in range(max(terms, 4))]
        if terms == 0:
            r = (identity - q) @ torch.linalg.inv(identity + q)
        elif terms < 3:
            r = identity + 2 * (terms - 1) * q
        else:
            last = max(terms - 1, 3)
            r = identity + 2 * sum(powers[1:last]) + powers[last]
        turns.append(identity + strength * (r - identity))
    dense = torch.block_diag(*(turns if count > 1 else turns * (columns // size)))
    return (w.flatten(1) @ dense.t()).reshape(w.shape)


def boft_input(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    stages, _, size, _ = f["boft_R"].shape
    half, columns, identity = size // 2, w[0].numel(), torch.eye(size, dtype=torch.float64)
    product = torch.eye(columns, dtype=torch.float64)
    for stage in range(stages):
        blocks = []
        for b in f["boft_R"][stage]:
            q = 0.5 * (b - b.t())
            r = (identity - q) @ torch.linalg.inv(identity + q)
            blocks.append(identity + strength * (r - identity))
        order = list(range(columns))
        if stage:  # even chunks of half a block come before odd ones, in each group of 2^(stage + 1)
            span = 2 ** (stage + 1)
            order = [
                (group * span + chunk) * half + k
                for group in range(columns // (span * half))
                for chunk in (*range(0, span, 2), *range(1, span, 2))
                for k in range(half)
            ]
        permutation = torch.eye(columns, dtype=torch.float64)[order]
        product = permutation @ torch.block_diag(*blocks) @ permutation.t() @ product
    rows = (w.flatten(1) @ product.t()).reshape(w.shape)
    return torch.stack([row * (1 + strength * (g - 1)) for row, g in zip(rows, f["boft_s"].flatten(), strict=True)])


def hra(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    columns = f["hra_u"].t()
    identity = product = torch.eye(columns.shape[1], dtype=torch.float64)
    before: list[Tensor] = []
    for column in columns:
        for other in before if f["hra_gs"] else ():
            column = column - (other @ column) * other
        unit = column / column.norm()
        before.append(unit)
        product = product @ (identity - 2 * torch.outer(unit, unit))
    return (w.flatten(1) @ (identity + strength * (product - identity))).reshape(w.shape)
