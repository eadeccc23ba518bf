"""Products that several families share, written in the few operators that the passes know by name."""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor


def matrix(factor: Tensor) -> Tensor:
    """`(a, b, *K)` → `(a, b·K)`; a matrix stays itself, without a no-op node in a traced graph."""
    return factor if factor.dim() == 2 else factor.flatten(1)


def some_inputs(factor: Tensor, start: int, stop: int, shape: Sequence[int]) -> Tensor:
    """Of `(r, I, *K)` or `(r, I·K)`, for a weight `(O, I, *K)`, some inputs: `(r, (stop - start) · K)`."""
    taps = prod(shape[2:])
    return matrix(factor)[:, start * taps : stop * taps]


def shaped(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """`tensor.reshape(shape)`, without a no-op node in a traced graph."""
    return tensor if tuple(tensor.shape) == tuple(shape) else tensor.reshape(list(shape))


def low_rank(left: Tensor, right: Tensor, shape: Sequence[int]) -> Tensor:
    """`left (O, r) @ right (r, I·K)`, in the shape `(O, I, *K)` of the weight."""
    return shaped(matrix(left) @ matrix(right), shape)


def tucker(core: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Tucker-2 product `T[o,i,κ] = Σ_pq core[p,q,κ] · left[o,p] · right[q,i]`.

    core `(p, q, *K)`, left `(O, p)`, right `(q, I)`; result `(O, I, *K)`.
    """
    taps = matrix(core)
    inner = (left @ taps).reshape([left.shape[0], core.shape[1], -1])  # (O, q, κ)
    outer = right.t() @ inner  # (O, I, κ)
    return outer.reshape([left.shape[0], right.shape[1], *core.shape[2:]])


def with_core(core: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """A Tucker product as a product of two matrices: `(O, p)` and `(p, I · κ)`, of left `(p, O)`, right `(q, I)`."""
    inner = (matrix(core).reshape([core.shape[0], core.shape[1], -1]).transpose(1, 2) @ right).transpose(1, 2)
    # Copies: torch.kron cannot take every view, also where a size of 1 makes it count as contiguous.
    plain = torch.contiguous_format
    return left.t().clone(memory_format=plain), inner.flatten(1).clone(memory_format=plain)


def kronecker(left: Tensor, right: Tensor) -> Tensor:
    """`K[l·k+k', m·n+n', κ] = left[l,m] · right[k',n',κ]`: left `(l, m)`, right `(k, n, *K)`."""
    for _ in range(right.dim() - 2):
        left = left.unsqueeze(-1)
    return left.kron(right)


def channels_last(activations: Tensor) -> bool:
    """Whether images, or volumes, lie in memory with the channels of each point side by side."""
    if activations.dim() not in (4, 5):
        return False
    found = activations.stride(1), activations.stride(-1), activations.shape[1]
    return all(isinstance(size, int) for size in found) and found[:2] == (1, found[2]) != (1, 1)  # symbols: no guards
