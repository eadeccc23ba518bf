"""Which tensors of an exported program are one, and which are the model's own: it keeps names, and no objects."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import GraphModule


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


def name_constants(gm: GraphModule, real: Mapping[str, Tensor]) -> None:
    """Give each constant that is the model's own memory the model's name for it.

    A forward, hook or attribute that closes over the model reads the model itself, not the copy that is traced: its
    weights come out as constants without a name, and no adapter would find them.
    """
    own: dict[Any, str] = {}
    for name, tensor in real.items():
        own.setdefault(_place(tensor), name)
    for node in list(gm.graph.find_nodes(op="get_attr")):
        name = str(node.target)
        value = getattr(gm, name, None) if "." not in name and name not in real else None
        if isinstance(value, Tensor) and (place := _place(value)) is not None and place in own:
            node.target = own[place]
            if not gm.graph.find_nodes(op="get_attr", target=name):
                delattr(gm, name)
