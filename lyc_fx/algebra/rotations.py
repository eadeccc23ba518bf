"""Rotations R made of generators. For a strength s both maps give `I + s · (R - I)`: the identity at 0, and R at 1."""

import torch
from torch import Tensor


def skew(generators: Tensor) -> Tensor:
    """`Q = B - Bᵀ` of each matrix B of a stack `(…, b, b)`."""
    return generators - generators.transpose(-1, -2)


def cayley(skew: Tensor, strength: float | Tensor) -> Tensor:
    """`R = (I + Q)(I - Q)⁻¹` for each skew Q of a stack `(…, b, b)`; that of -Q is its transpose."""
    one = identity(skew)
    rotation = torch.linalg.solve(one - skew, one + skew)  # the two factors commute: from the left it is the same
    return one + strength * (rotation - one)


def neumann(skew: Tensor, terms: int, strength: float | Tensor) -> Tensor:
    """PEFT's series, which is Cayley's `R = (I + Q)(I - Q)⁻¹` only in the limit:

    terms t ≥ 5:  R = I + 2Q + 2Q² + … + 2Q^(t-2) + Q^(t-1)
    terms 3, 4:   R = I + 2Q + 2Q² + Q³                            t = 2:  R = I + 2Q,   t = 1:  R = I
    """
    one = total = power = identity(skew)
    last = {1: 0, 2: 1}.get(terms, max(terms - 1, 3))
    for exponent in range(1, last + 1):
        power = power @ skew
        total = total + (power if exponent == last > 1 else 2 * power)
    return one + strength * (total - one)


def identity(matrices: Tensor) -> Tensor:
    """Identity matrices like these; `torch.eye` would fix the dtype in a trace."""
    return torch.ones_like(matrices[..., 0]).diag_embed()


def reflections(u: Tensor, *, orthonormal: bool) -> tuple[Tensor, Tensor]:
    """A product of Householder reflections `H_i = I - 2 u_i u_iᵀ`, u_i the columns of `(n, r)` at unit length, in one:

    `H = H_1 ⋯ H_r = I - left @ right`, `(n, r)` and `(r, n)`: `H = I - U T Uᵀ` with `T⁻¹ = I/2 + triu(UᵀU, 1)`
    (compact WY form); or, of `U = Q R` after Gram-Schmidt, `H = I - 2 Q Qᵀ`.
    """
    if orthonormal:
        q = torch.linalg.qr(u)[0]
        return q, 2 * q.t()
    u = u / torch.linalg.vector_norm(u, dim=0)
    gram = u.t() @ u
    return u, torch.linalg.solve_triangular((gram.triu() + gram.triu(1)) / 2, u.t(), upper=True)
