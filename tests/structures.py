"""What the algebra's structures and layers are drawn from: small integers in float64, whose sums do not round."""

from collections.abc import Callable

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from lyc_fx.algebra import Dense, Hadamard, Kron, Low, Structure, Tucker, Weighted

exact = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate),
)
Shape = tuple[int, ...]
Make = Callable[[st.DrawFn, Shape], Structure]


def integers(draw: st.DrawFn, *sizes: int) -> Tensor:
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    return torch.randint(-3, 4, sizes, generator=rng).double()


def rank(draw: st.DrawFn) -> int:
    return draw(st.integers(1, 4))


def dense(draw: st.DrawFn, shape: Shape) -> Structure:
    return Dense(integers(draw, *shape))


def low(draw: st.DrawFn, shape: Shape) -> Structure:
    r = rank(draw)
    return Low(integers(draw, shape[0], r), integers(draw, r, *shape[1:]))


def tucker(draw: st.DrawFn, shape: Shape) -> Structure:
    p, q = rank(draw), rank(draw)
    return Tucker(integers(draw, p, q, *shape[2:]), integers(draw, shape[0], p), integers(draw, q, shape[1]))


def weighted(draw: st.DrawFn, shape: Shape) -> Structure:
    r = rank(draw)
    left, right = integers(draw, shape[0], r), integers(draw, r, *shape[1:])
    return Weighted(left, right, integers(draw, shape[0]), integers(draw, r))


def hadamard(draw: st.DrawFn, shape: Shape) -> Structure:
    one, other = (draw(st.sampled_from([dense, low, tucker])) for _ in range(2))
    return Hadamard(one(draw, shape), other(draw, shape))


def khatri_rao(draw: st.DrawFn, shape: Shape) -> Structure:
    """One that is always small enough for a chain, if the weight is not too small."""
    first, second = ((integers(draw, shape[0], 1), integers(draw, 1, *shape[1:])) for _ in range(2))
    return Hadamard(Low(*first), Low(*second))


def kronecker(draw: st.DrawFn, shape: Shape) -> Structure:
    l, m = (draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])) for size in shape[:2])  # noqa: E741
    inner = draw(st.sampled_from([dense, low, tucker]))
    return Kron(integers(draw, l, m), inner(draw, (shape[0] // l, shape[1] // m, *shape[2:])))


STRUCTURES: dict[str, Make] = {f.__name__: f for f in (dense, low, tucker, weighted, hadamard, khatri_rao, kronecker)}


def drawn(make: Make, shape: Shape) -> st.SearchStrategy[Structure]:
    return st.composite(lambda draw: make(draw, shape))()
