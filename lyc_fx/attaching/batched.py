"""The forward of a layer in which each sample of a batch has adapters of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lyc_fx.attaching.bank import NAME, Bank
from lyc_fx.attaching.blended import Share, blend
from lyc_fx.attaching.forms import Chained, Form
from lyc_fx.attaching.forwards import Forward
from lyc_fx.errors import Unsupported, WrongArgument


@final
class Banks(nn.Module):
    """What lies beside a served layer: for each form of its adapters a bank, whose tensors have rows."""

    def __init__(self, banks: Sequence[Bank]) -> None:
        super().__init__()
        for position, bank in enumerate(banks):
            self.add_module(str(position), bank)
        self.picks = Picks()


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """What the samples of a batch use of one layer's banks."""

    samples: Tensor
    """Has as many elements as there are samples"""
    of_forms: Sequence[Tensor]
    """For each form `(2, n)`: the samples that have one, and their rows in its bank"""
    of_all: Sequence[Tensor]
    """The same as `(2, samples)`: whether each has one, and a row for each, which counts if it has"""


@final
class Picks:
    """What the next batches use of one layer's banks."""

    def __init__(self) -> None:
        self.batches: Sequence[Batch] = ()
        """Of different numbers of samples"""
        self.shares: list[Share] | None = None
        """Of the sets that are blended, instead of one for each sample"""

    def of(self, input: Tensor, module: nn.Module) -> Batch:
        """Those for an input. Raises WrongArgument for another number of samples than adapters were chosen for."""
        for batch in self.batches:
            if input.dim() and input.shape[0] == batch.samples.shape[0]:
                return batch
        sizes = " or ".join(str(batch.samples.shape[0]) for batch in self.batches) or "no"
        raise WrongArgument(
            f"a {type(module).__name__} got an input of shape {tuple(input.shape)}, and adapters were chosen for "
            f"{sizes} samples: choose() one for each sample; the first dimension must be that of samples"
        )


@final
class Some:
    """Some samples of a batch, by their positions."""

    def __init__(self, picked: Tensor) -> None:
        self._positions, self._rows = picked

    def pick(self, rows: Tensor) -> Tensor:
        """A row of a bank's tensor for each."""
        return rows.index_select(0, self._rows)

    def of(self, batch: Tensor) -> Tensor:
        """Those of a batch."""
        return batch.index_select(0, self._positions)

    def into(self, batch: Tensor, values: Tensor) -> Tensor:
        """The batch with other values for them."""
        return batch.index_copy(0, self._positions, values.to(batch.dtype))


@final
class All:
    """All samples, of which some count: their number is no size of any tensor."""

    def __init__(self, picked: Tensor) -> None:
        self._count, self._rows = picked

    def pick(self, rows: Tensor) -> Tensor:
        """A row of a bank's tensor for each."""
        return rows.index_select(0, self._rows)

    def of(self, batch: Tensor) -> Tensor:
        """The batch."""
        return batch

    def into(self, batch: Tensor, values: Tensor) -> Tensor:
        """The batch with other values for those that count."""
        count = self._count.reshape([-1] + [1] * (batch.dim() - 1)) == 1
        return torch.where(count, values.to(batch.dtype), batch)


def served(forms: Sequence[Form]) -> Forward:
    """The forward of layers with these forms of adapters.

    The layer's own call is one for the whole batch. A form costs its chain for the samples that have it, and a sample
    without adapters gets what the layer gives.
    """
    unbiased = next((form.base for form in forms if isinstance(form, Chained) and form.base is not None), None)

    def base(self: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's own results, and those that forms without its bias take."""
        if unbiased is None:
            y = type(self).forward(self, x)
            return y, y
        plain = unbiased(self, x)
        # Under autocast the sum is wider than the results.
        return (plain if self.bias is None else (plain + _shaped(self, plain)).to(plain.dtype)), plain

    def forward(self: nn.Module, input: Tensor, *rest: Any, **more: Any) -> Any:
        if any(each is not None for each in (*rest, *more.values())):
            raise Unsupported(f"a {type(self).__name__} with served adapters takes its input alone")
        banks: Any = getattr(self, NAME)
        picks: Picks = banks.picks
        held = list(zip(forms, banks.children(), strict=True))
        if picks.shares is not None:
            return blend(self, input, partial(base, self), held, picks.shares)
        batch = picks.of(input, self)
        x, parts = input, []
        compiling = torch.compiler.is_compiling()
        for position, (form, bank) in enumerate(held):
            if not compiling and not batch.of_forms[position].shape[1]:
                continue
            # A compiled convolution cannot have an unknown number of groups.
            samples = All(batch.of_all[position]) if compiling and form.spatial else Some(batch.of_forms[position])
            own, given = samples.of(input), form.given(self, bank, samples.pick)
            parts.append((form, samples, own, given))
            if form.before is not None:
                x = samples.into(x, form.before.of_each(own, *given))
        y, plain = base(self, x)
        for form, samples, own, given in parts:
            y = samples.into(y, form.of_each(own, samples.of(y if form.biased else plain), given))
        return y

    return forward


def _shaped(module: nn.Module, y: Tensor) -> Tensor:
    bias: Any = module.bias
    return bias.reshape([-1] + [1] * (y.dim() - 2)) if isinstance(module, _ConvNd) else bias
