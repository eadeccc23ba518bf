"""What a layer does with the samples of a batch that have one form of adapters, each with values of its own."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lyc_fx.attaching.bank import Bank, leaf
from lyc_fx.attaching.forwards import as_autocast
from lyc_fx.attaching.layer_program import LayerProgram
from lyc_fx.attaching.split import split
from lyc_fx.graph.program import BANK

Pick = Callable[[Tensor], Tensor]
"""From a tensor of a bank to some rows of it, or to one"""


@final
@dataclass(frozen=True, eq=False)
class Function:
    """Of samples, perhaps of results for them, and of what `Form.given` returns."""

    of_each: Callable[..., Tensor]
    """With rows of the bank, one for each sample"""
    of_all: Callable[..., Tensor]
    """With one row for all"""


@dataclass(frozen=True, eq=False, kw_only=True)
class Form(ABC):
    """Abstract."""

    spatial: bool
    """Whether its operators ask for the number of samples, as a convolution with other weights for each"""
    biased: bool = True
    """Whether the results of the layer's own call have the layer's bias when they come to `outputs`"""
    before: Function | None = None
    """What the layer's own call gets instead of the samples; None for the samples themselves"""

    @abstractmethod
    def given(self, module: nn.Module, bank: Bank, pick: Pick) -> list[Any]:
        """What the functions take besides: the layer's parameters, and what `pick` takes of the bank."""

    @abstractmethod
    def of_each(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        """Results with a row for each sample, from the samples and the results of the layer's own call for them."""

    @abstractmethod
    def of_all(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        """The same with one row for all samples."""


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Chained(Form):
    """A program. Its products with the layer's own weight are those of the whole batch, where it has such a part."""

    program: LayerProgram
    after: Function
    shares: bool
    """Whether `after` takes the results of the layer's own call"""
    base: Callable[[nn.Module, Tensor], Tensor] | None = None
    """The layer's own call without its bias, where `after` takes results without it"""

    @classmethod
    def of(cls, program: LayerProgram) -> "Chained":
        """Of a program."""
        spatial = len(program.call.dims.split()) > 2
        parts = split(program) if program.call.multiplies else None
        if parts is None:
            return cls(spatial=spatial, program=program, after=_function(program, program.run, 1), shares=False)
        before = _function(program, parts.before, 1) if parts.before else None
        base = None if parts.biased else _unbiased(program, parts.base)
        after = _function(program, parts.after, 2)
        biased = parts.biased
        return cls(spatial=spatial, program=program, after=after, shares=True, biased=biased, before=before, base=base)

    def given(self, module: nn.Module, bank: Bank, pick: Pick) -> list[Any]:
        return [
            pick(getattr(bank, leaf(name))) if name.startswith(f"{BANK}.") else getattr(module, name)
            for name in self.program.reads
        ]

    def of_each(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        return self._with(self.after.of_each, x, y, given)

    def of_all(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        return self._with(self.after.of_all, x, y, given)

    def _with(self, after: Callable[..., Tensor], x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        found = after(x, y, *given) if self.shares else after(x, *given)
        return as_autocast(found) if self.program.call.multiplies else found


def _function(program: LayerProgram, function: Callable[..., Tensor], moving: int) -> Function:
    """Of a part of a program: a function of `moving` activations and what the program reads."""
    call = program.call

    def of_all(*given: Any) -> Tensor:
        entered = [call.enter(activations) for activations in given[:moving]]
        return call.leave(given[0], function(*entered, *given[moving:]))

    dims = [0 if name.startswith(f"{BANK}.") else None for name in program.reads]
    return Function(torch.vmap(of_all, in_dims=(*[0] * moving, *dims)), of_all)


def _unbiased(program: LayerProgram, call_base: Callable[..., Tensor]) -> Callable[[nn.Module, Tensor], Tensor]:
    """The layer's own call on activations of any shape, for a module."""
    call, reads = program.call, program.reads

    def base(module: nn.Module, x: Tensor) -> Tensor:
        own = (None if name.startswith(f"{BANK}.") else getattr(module, name) for name in reads)
        return as_autocast(call.leave(x, call_base(call.enter(x), *own)))

    return base


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Substituted(Form):
    """The module's own code, with other values of some parameters."""

    names: tuple[str, ...]

    def given(self, module: nn.Module, bank: Bank, pick: Pick) -> list[Any]:
        held: Any = bank
        return [held.shell, {f"inner.{name}": pick(getattr(bank, leaf(name))) for name in self.names}]

    def of_each(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        shell, values = given

        def of_sample(x: Tensor, values: Mapping[str, Tensor]) -> Any:
            return functional_call(shell, dict(values), (x.unsqueeze(0),)).squeeze(0)

        return torch.vmap(of_sample)(x, values)

    def of_all(self, x: Tensor, y: Tensor, given: Sequence[Any]) -> Tensor:
        shell, values = given
        found = functional_call(shell, values, (x,))
        assert isinstance(found, Tensor)
        return found
