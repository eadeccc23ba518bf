"""Presenting a model, or all models of a pipeline, as one module."""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.graph.program import facts, uncompiled


class Pipeline(Protocol):
    """An object with named components, some of which are modules; such as a pipeline of diffusers."""

    @property
    def components(self) -> Mapping[str, Any]:
        """Models, and other objects such as tokenizers, by name."""
        ...


def as_module(model: Any) -> nn.Module:
    """Return the model without the wrapper of `torch.compile`. For a pipeline, return a module that holds its
    components under their names, so that parameters are called `unet.conv_in.weight` and so on.

    Raises WrongArgument for anything else, and Unsupported for a captured program.
    """
    if isinstance(model, nn.Module):
        return _live(uncompiled(model), "a captured program")
    components = getattr(model, "components", None)
    parts = components.items() if isinstance(components, Mapping) else ()
    found = {str(name): part for name, part in parts if isinstance(part, nn.Module)}
    if not found:
        raise WrongArgument(
            f"the model is a {type(model).__name__}: pass an nn.Module, or a pipeline whose components include some"
        )
    made = nn.Module()
    for name, part in found.items():
        made.add_module(name, _live(uncompiled(part), f"{name} is a captured program, which"))
    return made


def _live(model: nn.Module, what: str) -> nn.Module:
    if any(isinstance(part, GraphModule) and facts(part).keys for part in model.modules()):
        raise Unsupported(
            f"{what} does not record how the classes of its layers store their weights: use lyc_fx.splice and "
            "lyc_fx.fold, or merge into the model that it was captured from, whose weights it shares"
        )
    return model
