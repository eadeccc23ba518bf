"""What makes a stored tensor a factor, or a number."""

from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.numerics.finite import all_finite, finite

_PIECE = 2**16
"""Values that are counted at once, so that it needs little memory"""


def unusable(factor: Tensor, least: int) -> str | None:
    """Why no weight can be computed from this factor; `least` is how many dimensions it needs."""
    if not factor.is_floating_point():
        return f"is stored as {factor.dtype}; factors are floating-point numbers"
    if factor.numel() == 0:
        return f"is empty: shape {tuple(factor.shape)}"
    if factor.dim() < least:
        return f"has shape {tuple(factor.shape)}; it needs at least {least} dimensions"
    if factor.is_meta:
        return "has no values: it is on the meta device"
    if all_finite(factor):
        return None
    broken = sum(int((~finite(piece)).sum()) for piece in factor.reshape(-1).split(_PIECE))
    return f"holds {broken} values that are not finite"


def number(tensor: Tensor) -> float:
    """The value of a tensor of one element. Raises BadAdapter for another count, and for what is no real number."""
    if tensor.numel() != 1 or tensor.is_complex() or tensor.is_meta:
        kind = "complex" if tensor.is_complex() else "meta" if tensor.is_meta else f"{tensor.numel()}"
        raise BadAdapter(f"a number is expected, not {kind} values")
    return float(tensor)
