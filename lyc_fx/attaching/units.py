"""Which modules get another forward for the adapters of which parameters."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import nn

from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.model.weight_handle import WeightHandle

WHOLE = (nn.MultiheadAttention, nn.TransformerEncoderLayer)
"""Their code reads parameters of submodules without calling them"""
_HARMLESS = ("is tied to", "several elements at the same place", "is quantized")
"""Obstacles to overwriting a weight, which is not done here"""
Units = Mapping[str, Mapping[str, str]]
"""By the path of each module, its adapted parameters: their names in the module, and in the model"""


def units(model: nn.Module, names: Mapping[str, WeightHandle]) -> Units:
    """Group the adapted weights of a model by the module whose code reads them. Raises Unsupported."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name, handle in names.items():
        path = _owner(model, name)
        module = model.get_submodule(path)
        if isinstance(module, nn.RNNBase):
            raise Unsupported(f"{name}: a {type(module).__name__} keeps its weights in a list: use lyc_fx.live")
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            raise Unsupported(f"{name}: a {type(module).__name__} calls all that it holds: use lyc_fx.live")
        if handle.obstacle is not None and not any(text in handle.obstacle for text in _HARMLESS):
            raise Unsupported(f"{name} {handle.obstacle}: use lyc_fx.merge, or capture the model and splice")
        found[path][name.removeprefix(f"{path}.") if path else name] = name
    return found


def _owner(model: nn.Module, name: str) -> str:
    path = name.rpartition(".")[0]
    parts = path.split(".") if path else []
    for end in range(len(parts) + 1):
        above = ".".join(parts[:end])
        if isinstance(model.get_submodule(above), WHOLE):
            return above
    return path


@contextmanager
def named(path: str) -> Iterator[None]:
    """Put the path of a module before the name of its parameter in a BadAdapter."""
    try:
        yield
    except BadAdapter as error:
        raise BadAdapter(f"{path}.{error}" if path else str(error)) from error
