"""The weights of a live model: how each is read, and how it is replaced so that it can be undone."""

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from lyc_fx.errors import Unsupported
from lyc_fx.fitting import Weight
from lyc_fx.layers import weight_norm_parts
from lyc_fx.program import aliases, module_aliases, tensors


@final
@dataclass(frozen=True)
class Slot:
    """One weight of a model."""

    read: Callable[[], Tensor]
    write: Callable[[Tensor, ExitStack], None]
    """Replaces the weight; on the stack goes what gives the old one back, to the bit"""
    transposed: bool = False
    note: str | None = None
    """What to tell the user when the weight is replaced"""

    @property
    def weight(self) -> Weight:
        value = self.read()
        return Weight(tuple(value.shape), value.dtype, self.transposed)


def slots(model: nn.Module) -> dict[str, Slot]:
    """Every weight by its name: parameters, buffers, and what a module computes from them."""
    found: dict[str, Slot] = {}
    same, memory = module_aliases(model), _sharing(model)
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{prefix}{leaf}"
                others = [n for n in memory[id(tensor)] if same.get(n, n) != same.get(name, name)]
                found[name] = _stored(module, name, others)
        for leaf in module.parametrizations if parametrize.is_parametrized(module) else ():  # type: ignore[union-attr]
            found[f"{prefix}{leaf}"] = _parametrized(module, f"{prefix}{leaf}")
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                found[f"{prefix}{hook.name}"] = _weight_norm(module, hook)
    return found


def _stored(module: nn.Module, name: str, others: list[str]) -> Slot:
    leaf = name.rpartition(".")[2]
    table: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers

    def write(value: Tensor, undo: ExitStack) -> None:
        old: Tensor = table[leaf]
        if not others and not _overlaps_itself(old):
            _overwrite(old, value, undo)
            return
        undo.callback(operator.setitem, table, leaf, old)
        value = value.contiguous()
        table[leaf] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value

    transposed = leaf == "weight" and type(module).__name__ == "Conv1D"
    note = f"{name} was tied to {', '.join(others)}: it is untied" if others else None
    return Slot(lambda: table[leaf], write, transposed, note)


def _weight_norm(module: nn.Module, hook: WeightNorm) -> Slot:
    """Old-style weight norm, which computes the weight anew before each call."""

    def write(value: Tensor, undo: ExitStack) -> None:
        direction, magnitude = weight_norm_parts(value, hook.dim)
        _overwrite(module.get_parameter(f"{hook.name}_v"), direction, undo)
        _overwrite(module.get_parameter(f"{hook.name}_g"), magnitude, undo)

    return Slot(lambda: hook.compute_weight(module), write)


def _parametrized(module: nn.Module, name: str) -> Slot:
    leaf = name.rpartition(".")[2]
    chain: nn.Module = module.parametrizations[leaf]  # type: ignore[index, union-attr, assignment]

    def read() -> Tensor:
        with _evaluating(chain):
            return chain()

    def write(value: Tensor, undo: ExitStack) -> None:
        tables: list[dict[str, Any]] = [t for each in chain.modules() for t in (each._parameters, each._buffers)]
        for table in tables:
            for key, old in table.items():
                if old is not None:  # an inverse may write to a tensor, or put another one in its place
                    undo.callback(_copy, old, old.to("cpu", copy=True))
                    undo.callback(operator.setitem, table, key, old)
        refusal = Unsupported(
            f"{name} is computed by {_kinds(chain)}, which cannot give the merged weight; make it a plain one: "
            f"torch.nn.utils.parametrize.remove_parametrizations(module, {leaf!r})"
        )
        try:
            with _evaluating(chain):
                setattr(module, leaf, value)
        except (RuntimeError, ValueError, NotImplementedError) as error:  # there is no inverse
            raise refusal from error
        if not (read() - value).norm() <= 4 * torch.finfo(value.dtype).eps * value.norm():
            raise refusal

    return Slot(read, write)


def _kinds(chain: nn.Module) -> str:
    return ", ".join(type(each).__name__.lstrip("_") for each in chain.children())


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Spectral norm changes its buffers whenever it is read in training."""
    trained = [each for each in module.modules() if each.training]
    for each in trained:
        each.training = False
    try:
        yield
    finally:
        for each in trained:
            each.training = True


def _overwrite(tensor: Tensor, value: Tensor, undo: ExitStack) -> None:
    undo.callback(_copy, tensor, tensor.to("cpu", copy=True))  # the accelerator may have no room for it
    _copy(tensor, value)


def _copy(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():  # one may be written in its own mode only
        tensor.copy_(value)


def _sharing(model: nn.Module) -> dict[int, list[str]]:
    """For each parameter and buffer, by identity, the names of all that share memory with it, its own included."""
    names, stored = aliases(model), {id(tensor): tensor for tensor in tensors(model).values()}
    spans = sorted((span, key) for key, tensor in stored.items() if (span := _span(tensor)) is not None)
    groups = {key: list(names[key]) for key in stored}
    device, reached, group = "", 0, list[str]()
    for (where, start, end), key in spans:
        if where != device or start >= reached:
            device, reached, group = where, end, groups[key]
        else:
            reached = max(reached, end)
            group += names[key]
            groups[key] = group
    return groups


def _span(tensor: Tensor) -> tuple[str, int, int] | None:
    """Where a tensor lies in memory: device, first byte, and the byte after the last."""
    try:
        start = tensor.data_ptr()
        count = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    except RuntimeError:  # a subclass, or a sparse tensor, without memory of its own
        return None
    if not start or not tensor.numel():
        return None
    return str(tensor.device), start, start + count * tensor.element_size()


def _overlaps_itself(tensor: Tensor) -> bool:
    """Whether several elements are one number in memory, as `expand` leaves them."""
    span = _span(tensor)
    return span is not None and span[2] - span[1] < tensor.numel() * tensor.element_size()
