"""Recovering which tensors of an exported program are the same: the program has names, but no tensor identities."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import GraphModule


def tie_by_memory(program: ExportedProgram) -> dict[str, Tensor]:
    """Return a program's parameters and buffers by every name, with one object for all names of the same memory.

    A strict export reads a tied tensor by only one of its names, but the state dict has all of them.
    """
    found: dict[str, Tensor] = {}
    first: dict[Any, Tensor] = {}
    for name, tensor in program.state_dict.items():
        place = _place(tensor)
        found[name] = tensor if place is None else first.setdefault((place, isinstance(tensor, nn.Parameter)), tensor)
    return found


def _place(tensor: Tensor) -> Any:
    """Return a value that identifies a tensor's memory, dtype and layout; None if it has no memory."""
    if isinstance(tensor, FakeTensor) or tensor.is_meta or not tensor.numel():
        return None
    try:
        return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
    except RuntimeError:  # a sparse tensor
        return None


def name_constants(gm: GraphModule, real: Mapping[str, Tensor]) -> None:
    """Rename each constant of the graph that is one of the model's tensors to the model's name for it.

    A forward, hook or attribute that refers to the model by a closure reads the model itself, not the copy that is
    traced. Such weights become constants without the model's names, and adapters could not be matched to them.
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
