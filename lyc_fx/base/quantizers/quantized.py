"""What all quantized weights have in common."""

from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from lyc_fx.errors import Unsupported


@dataclass(frozen=True, eq=False)
class Quantized(ABC):
    """One quantized weight of a module, which is read anew at each use."""

    module: nn.Module
    name: str
    """Of the parameter in the module"""

    @final
    @property
    def stored(self) -> Tensor:
        """The tensor as the module holds it."""
        found = tensor_of(self.module, self.name)
        assert found is not None
        return found

    @final
    @property
    def kind(self) -> str:
        """The qualified name of its class, for messages."""
        return f"{type(self.stored).__module__}.{type(self.stored).__qualname__}"

    @final
    @property
    def form(self) -> Hashable:
        """What is equal for weights that layers which are alike may have."""
        return self.kind, self.shape, self.dtype, self.stored.device

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of the weight that it stands for, `(out, in)`."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the weight that it stands for, in which adapters act beside the layer."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """Return the weight that it stands for, as a plain tensor. In float32, all its digits."""

    def requantized(self, value: Tensor) -> nn.Parameter:
        """Quantize another weight of the same shape as this one was. Nothing is put into the module.

        Raises Unsupported where it is not known how this one was made.
        """
        raise Unsupported(
            f"is a {self.kind}, and how to make another one like it is not known here: run the adapter beside it with "
            "lyc_fx.attach, or merge before the model is quantized"
        )

    def put(self, parameter: Tensor) -> None:
        """Let the module have this parameter, from `requantized` or `stored`, instead of the one that it has."""
        table: dict[str, Any] = self.module._parameters
        (table if self.name in table else self.module._buffers)[self.name] = parameter

    @final
    @property
    def advice(self) -> str:
        """What it is, and what can be done with adapters for it; to follow its name."""
        return (
            f"is quantized, a {self.kind}: run the adapter beside it with lyc_fx.attach; or lyc_fx.merge(…, "
            "requantize=True) dequantizes it, merges, quantizes it again, and says how much of the change is lost; or "
            "merge into the model before it is converted, or fold the adapter into its checkpoint (lyc-fx fold)"
        )


def tensor_of(module: nn.Module, name: str) -> Tensor | None:
    """Return a parameter or buffer that a module itself holds."""
    found = module._parameters.get(name)
    return module._buffers.get(name) if found is None else found
