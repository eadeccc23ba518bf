"""A captured program in the place of its model: in a pipeline, or wherever code reads a model's configuration."""

from functools import wraps
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.program import captured


def stand_in(program: GraphModule, model: nn.Module) -> nn.Module:
    """A module that computes what the program does, and is to all else like the model that it was captured from.

    `pipe.unet = stand_in(folded, pipe.unet)`: calls, parameters, state dict, device and dtype are the program's; the
    call's signature, and attributes such as `config`, are the model's. The model's methods see the program: what they
    call on themselves is the program. Its submodules can be looked at, not called, for they have the base's weights.

    Raises WrongArgument.
    """
    if not isinstance(model, nn.Module) or isinstance(model, GraphModule):
        raise WrongArgument(f"the model is the one that the program was captured from, not {type(model).__name__}")

    @wraps(type(model).forward)
    def forward(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        return self.program(*args, **kwargs)

    # a class of its own: signatures are read from classes, and a copy has the same
    made: StandIn = type(type(model).__name__, (StandIn,), {"forward": forward})(captured(program), model)
    return made


class Shared:
    """A module that a deep copy does not copy: what is only looked at needs no second one."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self


class StandIn(nn.Module):
    """See `stand_in`."""

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
        """Of the program's weights."""
        return next((p.device for p in self.program.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Of the program's weights."""
        floating = (p.dtype for p in self.program.parameters() if p.is_floating_point())
        return next(floating, torch.get_default_dtype())

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The program's, which has the model's keys."""
        return self.program.state_dict(*args, **kwargs)


class Part:
    """A submodule of the model for which something stands in: its attributes can be read."""

    def __init__(self, module: nn.Module, owner: StandIn) -> None:
        self._module, self._owner = module, owner

    def __getattr__(self, name: str) -> Any:
        return _of(getattr(self._module, name), self._owner)

    def __getitem__(self, key: Any) -> Any:
        return _of(self._module[key], self._owner)  # type: ignore[index]

    def __len__(self) -> int:
        return len(self._module)  # type: ignore[arg-type]  # of a list of modules

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises Unsupported."""
        raise Unsupported(
            f"{type(self._module).__name__} belongs to the base model, without adapters: a captured program is called "
            "as a whole"
        )


def _of(found: Any, owner: StandIn) -> Any:
    """What an attribute of the model is of the thing that stands in for it."""
    if isinstance(found, MethodType) and isinstance(found.__self__, nn.Module):
        like = object.__getattribute__(owner, "_like").module
        return MethodType(found.__func__, owner) if found.__self__ is like else Part(found.__self__, owner)
    return Part(found, owner) if isinstance(found, nn.Module) else found
