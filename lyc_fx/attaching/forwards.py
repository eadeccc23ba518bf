"""The forwards of adapted layers, and how they come into a module's place for them."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lyc_fx.attaching.bank import NAME, leaf
from lyc_fx.errors import Unsupported
from lyc_fx.graph.program import BANK

if TYPE_CHECKING:
    from lyc_fx.attaching.layer_program import LayerProgram

Forward = Callable[..., Any]


def chained(program: "LayerProgram") -> Forward:
    """The forward of layers that run a program on their own parameters and their bank's tensors."""
    run, call, options = program.run, program.call, program.options
    own = [name for name in program.reads if not name.startswith(f"{BANK}.")]
    held = [leaf(name) for name in program.reads if name.startswith(f"{BANK}.")]
    order = [own.index(n) if n in own else len(own) + held.index(leaf(n)) for n in program.reads]

    def forward(self: nn.Module, input: Any, *rest: Any, **more: Any) -> Any:
        if any(each is not None for each in (*rest, *more.values())):
            raise Unsupported(f"a {type(self).__name__} with attached adapters takes its input alone: use lyc_fx.live")
        if options and call.options(self) != options:
            raise Unsupported(f"a {type(self).__name__} has other options than at the last set(): call it again")
        bank = getattr(self, NAME)
        given = [*(getattr(self, name) for name in own), *(getattr(bank, name) for name in held)]
        y = run(call.enter(input), *(given[position] for position in order))
        return call.leave(input, as_autocast(y) if call.multiplies else y)

    return forward


def as_autocast(y: Tensor) -> Tensor:
    """The dtype that autocast gives to outputs of a matrix product: a chain may end in a float32 factor or bias."""
    kind = y.device.type
    if kind == "meta" or y.dtype == torch.float64 or not torch.is_autocast_enabled(kind):
        return y
    return y.to(torch.get_autocast_dtype(kind))


def substituted(names: Sequence[str]) -> Forward:
    """The forward of a module whose own code runs with merged weights in the place of these parameters."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        bank: Any = getattr(self, NAME)
        values = {f"inner.{name}": getattr(bank, leaf(name)) for name in names}
        return functional_call(bank.shell, values, args, kwargs)

    return forward


@final
class Shell(nn.Module):
    """Calls a module as its class does, whatever stands in the place of its `forward`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.inner = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.inner).forward(self.inner, *args, **kwargs)


def place_of(module: nn.Module) -> str:
    """The attribute that holds the forward of an instance: another one under hooks of accelerate, which keep it there.

    Raises Unsupported for a module whose forward something else has replaced.
    """
    if "_old_forward" in module.__dict__:
        return "_old_forward"
    if "forward" in module.__dict__:
        raise Unsupported(
            f"something else has replaced the forward of a {type(module).__name__}, perhaps another adapter library: "
            "take that off before lyc_fx.attach"
        )
    return "forward"


def install(module: nn.Module, forward: Forward) -> Callable[[], None]:
    """Let an instance run another forward; returns what takes it off again."""
    ours = MethodType(forward, module)
    setattr(module, place_of(module), ours)

    def remove() -> None:
        """Wherever it is now: hooks may have come or gone since."""
        if module.__dict__.get("_old_forward") is ours:
            module.__dict__["_old_forward"] = MethodType(type(module).forward, module)
        if module.__dict__.get("forward") is ours:
            del module.__dict__["forward"]

    return remove
