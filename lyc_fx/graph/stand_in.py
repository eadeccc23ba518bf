"""Using a captured program in place of its model: in a pipeline, or wherever code reads attributes of the model."""

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.graph.program import captured


def stand_in(program: GraphModule, model: nn.Module) -> nn.Module:
    """Make a module that computes what a program computes, and has the attributes of the model it was captured from.

    In `pipe.unet = stand_in(folded, pipe.unet)`, calls, parameters, state dict, device and dtype are the program's; the
    signature, and attributes such as `config`, are the model's. When a method of the model calls the model, it calls
    the program. Attributes of the model's submodules can be read, but submodules cannot be called, since they have the
    weights of the base model.

    Raises WrongArgument if `program` is not a captured program, or `model` not a module.
    """
    if not isinstance(model, nn.Module) or isinstance(model, GraphModule):
        raise WrongArgument(f"the model is the one that the program was captured from, not {type(model).__name__}")

    @wraps(type(model).forward)
    def forward(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    # A class for each model: signatures are read from classes, and copies have the same class.
    made: StandIn = type(type(model).__name__, (StandIn,), {"forward": forward})(captured(program), model)
    return made


class Shared:
    """Holds a module that deep copies share instead of copying it, since it is only read."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self


class StandIn(nn.Module):
    """A module that runs a program and otherwise looks like a model; see `stand_in`."""

    def __init__(self, program: GraphModule, model: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.training = program.training
        object.__setattr__(self, "_like", Shared(model))  # not a submodule: its weights are not in use

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            found = getattr(object.__getattribute__(self, "_like").module, name)
        return _of(found, self)

    @property
    def device(self) -> torch.device:
        """The device of the program's weights."""
        return next((p.device for p in self.program.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the program's floating-point weights."""
        floating = (p.dtype for p in self.program.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the program's state dict, which has the model's keys."""
        return self.program.state_dict(*args, **kwargs)


class Part:
    """A submodule of the model in a stand-in: its attributes can be read, but it cannot be called."""

    def __init__(self, module: nn.Module, owner: StandIn) -> None:
        self._module, self._owner = module, owner

    def __getattr__(self, name: str) -> Any:
        return _of(getattr(self._module, name), self._owner)

    def __getitem__(self, key: Any) -> Any:
        return _of(self._module[key], self._owner)  # type: ignore[index]

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]  # of a list of modules

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise Unsupported."""
        raise Unsupported(
            f"{type(self._module).__name__} belongs to the base model, without adapters: call the captured program as "
            "a whole, not its submodules"
        )


def _of(found: Any, owner: StandIn) -> Any:
    """Wrap an attribute of the model for its stand-in: bind methods to the stand-in, and wrap submodules."""
    if isinstance(found, MethodType) and isinstance(found.__self__, nn.Module):
        like = object.__getattribute__(owner, "_like").module
        return MethodType(found.__func__, owner) if found.__self__ is like else Part(found.__self__, owner)
    return Part(found, owner) if isinstance(found, nn.Module) else found
