"""The model that adapters are for: a module, or the modules of a pipeline as one."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.program import facts, uncompiled


class Pipeline(Protocol):
    """What has components, some of them modules, by name; such as a pipeline of diffusers."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Models, and what else belongs to them, such as tokenizers."""
        ...


def whole(model: Any) -> nn.Module:
    """The model without the wrapper of `torch.compile`; of a pipeline a module that holds its components, under their
    names: `unet.conv_in.weight`.

    Raises WrongArgument for anything else, and
    Unsupported for a captured program.
    """
    if isinstance(model, nn.Module):
        return _live(uncompiled(model), "a captured program")
    components = getattr(model, "components", None)
    parts = components.items() if isinstance(components, Mapping) else ()
    found = {str(name): part for name, part in parts if isinstance(part, nn.Module)}
    if not found:
        raise WrongArgument(
            f"the model is a {type(model).__name__}: an nn.Module is expected, or a pipeline whose components are some"
        )
    made = nn.Module()
    for name, part in found.items():
        made.add_module(name, _live(uncompiled(part), f"{name} is a captured program, which"))
    return made


def _live(model: nn.Module, what: str) -> nn.Module:
    if any(isinstance(part, GraphModule) and facts(part).keys for part in model.modules()):
        raise Unsupported(
            f"{what} does not know how the classes of its layers store their weights: "
            "splice and fold it, or merge into the model that it was captured from, whose weights it shares"
        )
    return model
