"""What `torch.compile` writes for a program on the stand-in device, and what can be counted in it."""

import copy
import re
from collections import Counter
from dataclasses import dataclass
from math import prod
from typing import Any, final
from unittest.mock import patch

import torch
from torch import Tensor
from torch._inductor import config
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from inductor.device import DEVICE

_LAUNCH = re.compile(r"^\s+(triton_\w+)\.run\(", re.MULTILINE)
_GEMM = re.compile(r"\bextern_kernels\.(\w+)\(")
_FALLBACK = re.compile(r"\btorch\.ops\.([\w.]+)\(")
_ALLOCATION = re.compile(r"\bempty_strided_cuda\(\(([\d, ]*)\), \([\d, ]*\), torch\.(\w+)\)")
_RETURNED = re.compile(r"\b(buf\d+) = (?:extern_kernels\.|torch\.ops\.|buf\d+\[)")
_HOST = ("empty_strided_cpu(", "cpp_fused")


@final
@dataclass(frozen=True)
class Code:
    """A program's code: inductor's Python source, with kernels in it and a function that calls them in order."""

    source: str
    sizes: dict[str, int]
    """The bytes of each buffer that a kernel or a GEMM writes"""

    @property
    def call(self) -> str:
        """The function that calls the kernels."""
        return self.source[self.source.index("def call(") : self.source.index("runner = Runner(")]

    @property
    def launches(self) -> Counter[str]:
        """The launches of fused kernels, by name: one that serves two layers counts twice."""
        return Counter(_LAUNCH.findall(self.call))

    @property
    def gemms(self) -> Counter[str]:
        """The calls of cuBLAS and cuDNN: mm, addmm, bmm, baddbmm, convolution."""
        return Counter(_GEMM.findall(self.call))

    @property
    def fallbacks(self) -> Counter[str]:
        """The calls of eager operators that inductor has neither a kernel nor a GEMM for."""
        return Counter(_FALLBACK.findall(self.call))

    @property
    def allocated(self) -> int:
        """The bytes of all buffers that are allocated, the result's too; one that is used again counts once."""
        own = sum(_bytes(shape, dtype) for shape, dtype in _ALLOCATION.findall(self.call))
        return own + sum(self.sizes.get(name, 0) for name in _RETURNED.findall(self.call))

    @property
    def written(self) -> int:
        """The bytes that kernels and GEMMs write, the result's too, wherever they write them."""
        return sum(self.sizes.values())


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
            code = written.code
    if found := [each for each in _HOST if each in code.call]:
        raise AssertionError(f"part of the program runs on the host: {', '.join(found)}")
    return code


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
            if each.is_template() or type(each).__name__ == "NopKernelSchedulerNode":
                continue
            for buffer in each.get_outputs():
                layout, name = buffer.node.layout, buffer.get_name()
                if name not in graph.removed_buffers and hasattr(layout, "dtype"):
                    sizes[name] = layout.dtype.itemsize * int(prod(layout.size))
    return sizes


def _bytes(shape: str, dtype: str) -> int:
    return getattr(torch, dtype).itemsize * prod(int(n) for n in shape.split(",") if n.strip())


def _on_device(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=DEVICE)


def _move(program: GraphModule) -> None:
    for module in program.modules():
        for store in (module._parameters, module._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    store[name] = _on_device(tensor)  # type: ignore[assignment]  # no gradients are asked for
