"""Weights that a module computes: under weight norm, and under parametrizations."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from lyc_fx.errors import Unsupported
from lyc_fx.graph.layers import weight_norm_parts
from lyc_fx.model.undo import overwrite, save_for_undo
from lyc_fx.model.weight_handle import Fill, WeightHandle, filled


def weight_norm(module: nn.Module, hook: WeightNorm, transposed: bool) -> WeightHandle:
    """Make the handle of a weight under the older `torch.nn.utils.weight_norm`, which computes it before each call."""

    def write(fill: Fill, undo: ExitStack) -> None:
        pair = [module.get_parameter(f"{hook.name}_{suffix}") for suffix in "vg"]
        _set_pair(pair, filled(fill, hook.compute_weight(module)), hook.dim, undo)

    return WeightHandle(lambda: hook.compute_weight(module), write, transposed, obstacle="is computed by weight norm")


def _set_pair(pair: Sequence[Tensor], value: Tensor, dim: int, undo: ExitStack) -> None:
    """Set the direction and magnitude tensors to those of the weight `value`."""
    for tensor, part in zip(pair, weight_norm_parts(value, dim), strict=True):
        save_for_undo(tensor, undo)
        overwrite(tensor, part)


def parametrized(module: nn.Module, name: str, transposed: bool) -> WeightHandle:
    """Make the handle of a weight under a parametrization of torch."""
    leaf = name.rpartition(".")[2]
    chain: nn.Module = module.parametrizations[leaf]  # type: ignore[index, union-attr, assignment]
    steps = list(chain.children())
    norm = steps[0] if len(steps) == 1 else None

    def read() -> Tensor:
        with _evaluating(chain):
            return chain()

    def write(fill: Fill, undo: ExitStack) -> None:
        value = filled(fill, read())
        if isinstance(norm, _WeightNorm):  # its own inverse fails where a row is zero
            _set_pair([chain.original1, chain.original0], value, norm.dim, undo)  # type: ignore[list-item]
            return
        tables: list[dict[str, Any]] = [t for each in chain.modules() for t in (each._parameters, each._buffers)]
        for table in tables:
            for key, old in table.items():
                if old is not None:  # a parametrization's inverse may write to the tensor, or replace it
                    save_for_undo(old, undo)
                    undo.callback(operator.setitem, table, key, old)
        refusal = Unsupported(
            f"{name} is computed by {_kinds(chain)}, which cannot produce the merged weight; make it a plain weight: "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r})"
        )
        try:
            with _evaluating(chain):
                setattr(module, leaf, value)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # there is no inverse
            raise refusal from error
        if not (read() - value).norm() <= 4 * torch.finfo(value.dtype).eps * value.norm():
            raise refusal

    return WeightHandle(read, write, transposed, obstacle=f"is computed by {_kinds(chain)}")


def _kinds(chain: nn.Module) -> str:
    return ", ".join(type(each).__name__.lstrip("_") for each in chain.children())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, so that spectral norm does not update its buffers when the weight is read."""
    trained = [each for each in module.modules() if each.training]
    for each in trained:
        each.training = False
    try:
        yield
    finally:
        for each in trained:
            each.training = True
