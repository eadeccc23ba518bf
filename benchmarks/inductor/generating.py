"""`torch.compile` on the stand-in device, as far as the code it writes."""

import copy
from math import prod
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from inductor.code import Code
from inductor.device import DEVICE


def generated(program: GraphModule, x: Tensor) -> Code:
    """The code for a program and an input of this shape, as for inference; the device's stand-in is there."""
    program = copy.deepcopy(program)
    torch._dynamo.reset()
    with (
        FakeTensorMode(),
        torch.no_grad(),
        config.patch(force_disable_caches=True, compile_threads=1),
        # These patterns are traced with tensors on the device: attention's, and of padded GEMMs and unique indices.
        # The layers here have none of them.
        patch.object(joint_graph, "lazy_init", lambda *_: None),
        patch.object(joint_graph, "UniformValueConstantFolder", _FolderOnHost),
        patch.object(GraphLowering, "compile_to_module", _stop),
    ):
        _move(program)
        try:
            torch.compile(program, fullgraph=True)(_on_device(x))
        except _Written as written:
            if written.code.on_host:
                raise AssertionError("a part of the program would run on the host") from None
            return written.code
    raise AssertionError("inductor wrote no code")


class _Host(TorchDispatchMode):
    """Constants that are made for the device are made on the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


class _FolderOnHost(joint_graph.UniformValueConstantFolder):
    """inductor finds the value of a uniform constant by making one element of it on its device."""

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with _Host():
            return super().run(*args, **kwargs)


class _Written(BaseException):
    """Carries the code out of torch.compile, which wraps every Exception."""

    def __init__(self, code: Code) -> None:
        self.code = code


def _stop(graph: GraphLowering) -> Any:
    """In the place of importing the code: that would load the kernels onto the device."""
    source = graph.codegen()[0].value
    raise _Written(Code(source, _sizes(graph)))


def _sizes(graph: GraphLowering) -> dict[str, int]:
    """The buffers that are left after fusion, without those that only join others or name one that is there."""
    sizes = {}
    for node in graph.scheduler.nodes:
        for each in node.get_nodes():
            for buffer in () if isinstance(each, NopKernelSchedulerNode) else each.get_outputs():
                layout, name = buffer.node.layout, buffer.get_name()
                if name not in graph.removed_buffers and hasattr(layout, "dtype"):
                    sizes[name] = layout.dtype.itemsize * int(prod(layout.size))
    return sizes


def _on_device(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def _move(program: GraphModule) -> None:
    for module in program.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = _on_device(tensor)  # type: ignore[assignment]  # no gradients are asked for
