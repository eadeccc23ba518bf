"""The forward of a layer whose results are blended, position by position, from those with several adapters."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from lyc_fx.attaching.forms import Form
from lyc_fx.attaching.masks import Mask
from lyc_fx.errors import WrongArgument


@final
@dataclass(frozen=True)
class Share:
    """What one set has of a layer's results."""

    form: int
    """Which of the layer's forms it has"""
    row: Tensor
    """Its row in the bank, of one element"""
    mask: Mask


def blend(
    module: nn.Module,
    x: Tensor,
    base: Callable[[Tensor], tuple[Tensor, Tensor]],
    forms: Sequence[tuple[Form, Any]],
    shares: Sequence[Share],
) -> Tensor:
    """`y = y₀ + Σ m · (y_set - y₀)`, y₀ the results without adapters.

    `base` gives the results of the layer's own call with its bias, and those that forms without a bias take.
    """
    whole, plain = base(x)
    y = whole
    for share in shares:
        form, bank = forms[share.form]
        given = form.given(module, bank, partial(_row, share.row))
        own = (whole, plain) if form.before is None else base(form.before.of_all(x, *given))
        result = form.of_all(x, own[0] if form.biased else own[1], given)
        y = y + _shaped(module, share.mask, whole) * (result - whole)
    return y.to(whole.dtype)


def _row(row: Tensor, rows: Tensor) -> Tensor:
    return rows.index_select(0, row).squeeze(0)


def _shaped(module: nn.Module, mask: Mask, y: Tensor) -> Tensor | float:
    """The mask for a layer's results, so that it broadcasts against them."""
    first = isinstance(module, (_ConvNd, nn.GroupNorm, _NormBase))
    grid = tuple(y.shape[2:] if first else y.shape[1:-1])
    found = mask.at(grid, f"a {type(module).__name__}")
    if not isinstance(found, Tensor):
        return found
    if found.dim() and found.shape[0] not in (1, y.shape[0]):
        raise WrongArgument(f"a mask has {found.shape[0]} samples, and a {type(module).__name__} got {y.shape[0]}")
    found = found.to(y)
    if found.dim() == 0:
        return found
    return found.unsqueeze(1 if first else -1)
