"""Which tensors of an exported program are one: it keeps their names, but not that they are one object."""

from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram


def retied(program: ExportedProgram) -> dict[str, Tensor]:
    """Its parameters and buffers by every name, one object for all that are the same stretch of memory.

    A strict export reads a tied tensor under one of its names only; the others are in the state dict all the same.
    """
    found: dict[str, Tensor] = {}
    first: dict[Any, Tensor] = {}
    for name, tensor in program.state_dict.items():
        place = _place(tensor)
        found[name] = tensor if place is None else first.setdefault((place, isinstance(tensor, nn.Parameter)), tensor)
    return found


def _place(tensor: Tensor) -> Any:
    """Where a tensor lies in memory, and how; None where it has none of its own."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta or not tensor.numel():
        return None
    try:
        return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    except RuntimeError:  # a sparse tensor
        return None
