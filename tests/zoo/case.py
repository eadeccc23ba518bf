"""What the zoo knows of a model: how its library builds it, and what it is called with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from lyc_fx.graph.capture.dynamic import DynamicShapes


@dataclass(frozen=True)
class Case:
    """A model of the zoo, in float64, so that roads that differ in more than rounding are told from those that do."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[int], dict[str, Any]]
    """Keyword arguments at a size: 0 is the example of the capture, 1 has other sizes wherever they may vary"""
    shapes: DynamicShapes = "auto"
    bare: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Weights `(out, in, *kernel)` that are no layer's"""
    exact: bool = True
    """Whether eager computes by the operators that are captured; nn.MultiheadAttention has a fused one besides"""

    def __str__(self) -> str:
        return self.name

    def model(self, *, train: bool = False) -> nn.Module:
        """The model as its library builds it, with random weights: the same ones each time."""
        torch.manual_seed(0)
        model = self.build()
        for tensor in (*model.parameters(), *model.buffers()):  # not model.to(), about which diffusers has opinions
            if tensor.is_floating_point():
                tensor.data = tensor.data.double()
        with torch.no_grad():
            for parameter in model.parameters():
                # libraries start layer scales, gates and biases at constants, which would hide what is before them
                parameter.add_(0.02 * torch.randn(parameter.shape, dtype=parameter.dtype))
        return model.train(train)

    def call(self, size: int) -> dict[str, Any]:
        """The inputs at a size."""
        torch.manual_seed(1 + size)
        inputs: dict[str, Any] = pytree.tree_map_only(
            Tensor, lambda t: t.double() if t.is_floating_point() else t, self.inputs(size)
        )
        return inputs
