"""What lies beside an adapted layer's own parameters."""

import copy
from collections.abc import Mapping
from typing import Any, final

from torch import Tensor, nn

from lyc_fx.errors import Unsupported
from lyc_fx.graph.program import BANK

NAME = BANK
"""The submodule of an adapted layer that is its bank"""


@final
class Bank(nn.Module):
    """Factors, strengths and staged values of one layer. The state dict has them only if that was asked for."""

    def __init__(self, tensors: Mapping[str, Tensor], *, saved: bool) -> None:
        super().__init__()
        self.saved = saved
        for name, tensor in tensors.items():
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(leaf(name), tensor)
            else:
                self.register_buffer(leaf(name), tensor)

    def read(self, name: str) -> Tensor:
        """Return a tensor by the name that the layer's program gives it."""
        found = getattr(self, leaf(name))
        assert isinstance(found, Tensor)
        return found

    @property
    def places(self) -> list[tuple[dict[str, Any], str]]:
        """Where it holds each of its tensors: the table and the name there."""
        return [(table, name) for table in (self._parameters, self._buffers) for name in table]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Bank":
        made = Bank.__new__(Bank)
        memo[id(self)] = made
        for tensor in self.buffers(recurse=False):  # or the memory of all layers would be copied with one of them
            memo[id(tensor)] = tensor.detach().clone()
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Raise Unsupported: what is loaded would run without its adapters."""
        raise Unsupported("a model with attached adapters cannot be pickled: detach them first, or save its state dict")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Follow the layer to another device, but not to another dtype: strengths and factors keep their digits."""
        apply: Any = super()._apply
        return apply(lambda tensor: fn(tensor).to(tensor.dtype), recurse)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        if not self.saved:
            return
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._buffers if not keep_vars else ():  # in one memory, safetensors would not write them
            destination[prefix + name] = destination[prefix + name].clone()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        if self.saved:
            super()._load_from_state_dict(*args, **kwargs)


def leaf(name: str) -> str:
    """The bank's name for a tensor of a layer's program: `lyc_fx.0.weight.up` is `0_weight_up`."""
    return name.removeprefix(f"{BANK}.").replace(".", "_")
