"""The forwards of layers in which each sample of a batch has adapters of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from lyc_fx.attaching.bank import NAME, leaf
from lyc_fx.attaching.forwards import as_autocast
from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.graph.program import BANK

if TYPE_CHECKING:
    from lyc_fx.attaching.layer_program import LayerProgram


@final
class Picks:
    """Which row of every layer's bank each sample of the next batch uses."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        """How many there are"""
        self.of_samples = torch.zeros(1, dtype=torch.int64, device=device)

    def choose(self, rows: Sequence[int]) -> None:
        """Let the n-th sample use the n-th of these rows."""
        chosen = torch.tensor(rows, dtype=torch.int64, device=self.of_samples.device)
        if chosen.shape == self.of_samples.shape:
            self.of_samples.copy_(chosen)  # in place: neither a compiled model nor a CUDA graph notices
        else:
            self.of_samples = chosen


def chained_each(program: "LayerProgram") -> Callable[..., Any]:
    """The forward of layers that run a program on each sample, with the row of the bank that the sample uses.

    The products with the layer's own weight stay products of the whole batch: `torch.vmap` knows that all samples
    share it. Those with factors become batched products.
    """
    call, options, reads = program.call, program.options, program.reads
    shared = tuple(not name.startswith(f"{BANK}.") for name in reads)

    def of_sample(x: Tensor, *given: Tensor) -> Tensor:
        return call.leave(x, program.run(call.enter(x), *given))

    of_samples = torch.vmap(of_sample, in_dims=(0, *(None if own else 0 for own in shared)))

    def forward(self: nn.Module, input: Tensor, *rest: Any, **more: Any) -> Any:
        if any(each is not None for each in (*rest, *more.values())):
            raise Unsupported(f"a {type(self).__name__} with served adapters takes its input alone")
        if options and call.options(self) != options:
            raise Unsupported(f"a {type(self).__name__} has other options than when it was served: serve it anew")
        bank: Any = getattr(self, NAME)
        picked = picked_for(self, input, bank)
        given = [
            getattr(self, name) if own else getattr(bank, leaf(name)).index_select(0, picked)
            for name, own in zip(reads, shared, strict=True)
        ]
        y = of_samples(input, *given)
        return as_autocast(y) if call.multiplies else y

    return forward


def substituted_each(names: Sequence[str]) -> Callable[..., Any]:
    """The forward of a module whose own code runs on each sample with values of these parameters for that sample."""

    def forward(self: nn.Module, input: Tensor, *rest: Any, **more: Any) -> Any:
        if rest or more:
            raise Unsupported(f"a {type(self).__name__} with served adapters takes its input alone")
        bank: Any = getattr(self, NAME)
        picked = picked_for(self, input, bank)
        values = {f"inner.{name}": getattr(bank, leaf(name)).index_select(0, picked) for name in names}

        def of_sample(of_each: Mapping[str, Tensor], x: Tensor) -> Any:
            return functional_call(bank.shell, dict(of_each), (x.unsqueeze(0),)).squeeze(0)

        return torch.vmap(of_sample)(values, input)

    return forward


def picked_for(module: nn.Module, input: Tensor, bank: Any) -> Tensor:
    """The rows that the samples of an input use. Raises WrongArgument for another number of samples than chosen."""
    picked: Tensor = bank.picks.of_samples
    if input.dim() == 0 or input.shape[0] != picked.shape[0]:
        raise WrongArgument(
            f"a {type(module).__name__} got an input of shape {tuple(input.shape)}, and adapters were chosen for "
            f"{picked.shape[0]} samples: choose() one for each sample; the first dimension must be that of samples"
        )
    return picked
