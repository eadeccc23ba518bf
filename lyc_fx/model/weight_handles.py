"""The weights of a live model: how to read each one, and how to replace it in a way that can be undone."""

import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from lyc_fx.base.conv1d import stored_in_out
from lyc_fx.base.foreign import hook_computed
from lyc_fx.base.quantizers import Quantized, quantized
from lyc_fx.binding.fitting import Weight
from lyc_fx.errors import Unsupported
from lyc_fx.graph.layers import weight_norm_parts
from lyc_fx.graph.program import BANK, module_aliases
from lyc_fx.model.memory import find_shared, overlaps_itself
from lyc_fx.model.undo import overwrite, save_for_undo

Fill = Callable[[Tensor, Tensor], None]
"""Computes a new weight from the first tensor and writes it to the second; both may be the same tensor"""


@final
@dataclass(frozen=True)
class WeightHandle:
    """Access to one weight of a model."""

    read: Callable[[], Tensor]
    """Returns the weight, computing it if need be"""
    write: Callable[[Fill, ExitStack], None]
    """Replaces the weight, and pushes onto the stack what restores the old one exactly"""
    transposed: bool = False
    """Whether it is stored as `(in, out)`"""
    of_transposed_conv: bool = False
    """Whether it is the weight of a transposed convolution, `(in, out/groups, *kernel)`"""
    note: str | None = None
    """What to tell the user when the weight is replaced"""
    obstacle: str | None = None
    """Why the tensor that `read` returns cannot be overwritten in place; None if it can"""
    quantized: Quantized | None = None
    """For a quantized weight, what is known of it; `read` then dequantizes it at each call"""

    @property
    def stored(self) -> Tensor:
        """The tensor, as the module has it where it is quantized."""
        return self.read() if self.quantized is None else self.quantized.stored

    @property
    def weight(self) -> Weight:
        """The description that adapters are bound by."""
        value = self.read() if self.quantized is None else self.quantized
        return Weight(tuple(value.shape), value.dtype, self.transposed, self.of_transposed_conv)


@final
class Values(Mapping[str, Tensor]):
    """The values of some weights by name, each read when it is asked for."""

    def __init__(self, found: Mapping[str, WeightHandle], names: Collection[str]) -> None:
        self._found, self._names = found, names

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._found[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def find_weights(model: nn.Module) -> dict[str, WeightHandle]:
    """Find every weight of a model by its name: parameters, buffers, and weights that a module computes from them."""
    found: dict[str, WeightHandle] = {}
    same, memory, in_out = module_aliases(model), find_shared(model), stored_in_out(model)
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if BANK in path.split("."):
            continue  # attached adapters
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                name = f"{prefix}{leaf}"
                others = [n for n in memory[id(tensor)] if same.get(n, n) != same.get(name, name)]
                handle = _stored(module, name, others, name in in_out)
                if (held := quantized(module, leaf)) is not None:
                    handle = _quantized(handle, name, held)
                found[name] = replace(
                    handle, of_transposed_conv=isinstance(module, _ConvTransposeNd) and leaf == "weight"
                )
        for leaf in module.parametrizations if parametrize.is_parametrized(module) else ():  # type: ignore[union-attr]
            name = f"{prefix}{leaf}"
            parts = (*module.parametrizations[leaf].parameters(), *module.parametrizations[leaf].buffers())  # type: ignore[index, union-attr, operator]
            found[name] = _unless_shared(_parametrized(module, name, name in in_out), name, parts, memory)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                name = f"{prefix}{hook.name}"
                parts = tuple(module.get_parameter(f"{hook.name}_{part}") for part in "gv")
                found[name] = _unless_shared(_weight_norm(module, hook, name in in_out), name, parts, memory)
        for leaf, reason in hook_computed(module):
            found[f"{prefix}{leaf}"] = _refused(module, f"{prefix}{leaf}", reason)
    return found


def _stored(module: nn.Module, name: str, others: list[str], transposed: bool) -> WeightHandle:
    leaf = name.rpartition(".")[2]
    table: dict[str, Any] = module._parameters if leaf in module._parameters else module._buffers

    obstacle: str | None = None
    if others:
        obstacle = f"is tied to {', '.join(others)}"
    elif overlaps_itself(table[leaf]):
        obstacle = "has several elements at the same place in memory"

    def write(fill: Fill, undo: ExitStack) -> None:
        old: Tensor = table[leaf]
        if obstacle is None:
            save_for_undo(old, undo)
            fill(old, old)
            return
        undo.callback(operator.setitem, table, leaf, old)
        value = _filled(fill, old)
        table[leaf] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value

    note = f"{name} was tied to {', '.join(others)}: it is untied" if others else None
    return WeightHandle(lambda: table[leaf], write, transposed, note=note, obstacle=obstacle)


def _quantized(handle: WeightHandle, name: str, held: Quantized) -> WeightHandle:
    """Make the handle of a quantized weight, from that of its tensor."""

    def refuse(fill: Fill, undo: ExitStack) -> None:
        raise Unsupported(f"{name} {held.advice}")

    return replace(
        handle,
        read=lambda: held.dequantized(held.dtype),
        write=refuse,
        obstacle=handle.obstacle or "is quantized",
        quantized=held,
    )


def _refused(module: nn.Module, name: str, reason: str) -> WeightHandle:
    """Make the handle of a weight that adapters may be for, but that cannot be replaced: writing raises `reason`."""
    leaf = name.rpartition(".")[2]

    def refuse(fill: Fill, undo: ExitStack) -> None:
        raise Unsupported(f"{name} {reason}")

    return WeightHandle(lambda: getattr(module, leaf), refuse, obstacle=reason)


def _unless_shared(
    handle: WeightHandle, name: str, parts: Sequence[Tensor], memory: Mapping[int, list[str]]
) -> WeightHandle:
    """Return the handle of a weight that is computed from `parts`, refusing writes if another weight uses one of them.

    A module that is registered under two names counts once: both names are for the same weight.
    """
    counts = [len(memory.get(id(part), ())) for part in parts]
    shared = [part for part, count in zip(parts, counts, strict=True) if count > min(counts)]
    if not shared:
        return handle
    names = memory[id(shared[0])]

    def refuse(fill: Fill, undo: ExitStack) -> None:
        raise Unsupported(
            f"{name} is computed from a tensor that has several names, {', '.join(names)}: a merge into it would "
            "change the other weight as well; give each a tensor of its own (module.weight_v = nn.Parameter(…)) before "
            "merging"
        )

    return replace(handle, write=refuse)


def _weight_norm(module: nn.Module, hook: WeightNorm, transposed: bool) -> WeightHandle:
    """Make the handle of a weight under the older `torch.nn.utils.weight_norm`, which computes it before each call."""

    def write(fill: Fill, undo: ExitStack) -> None:
        pair = [module.get_parameter(f"{hook.name}_{suffix}") for suffix in "vg"]
        _set_pair(pair, _filled(fill, hook.compute_weight(module)), hook.dim, undo)

    return WeightHandle(lambda: hook.compute_weight(module), write, transposed, obstacle="is computed by weight norm")


def _set_pair(pair: Sequence[Tensor], value: Tensor, dim: int, undo: ExitStack) -> None:
    """Set the direction and magnitude tensors to those of the weight `value`."""
    for tensor, part in zip(pair, weight_norm_parts(value, dim), strict=True):
        save_for_undo(tensor, undo)
        overwrite(tensor, part)


def _parametrized(module: nn.Module, name: str, transposed: bool) -> WeightHandle:
    leaf = name.rpartition(".")[2]
    chain: nn.Module = module.parametrizations[leaf]  # type: ignore[index, union-attr, assignment]
    steps = list(chain.children())
    norm = steps[0] if len(steps) == 1 else None

    def read() -> Tensor:
        with _evaluating(chain):
            return chain()

    def write(fill: Fill, undo: ExitStack) -> None:
        value = _filled(fill, read())
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


def _filled(fill: Fill, old: Tensor) -> Tensor:
    value = torch.empty_like(old, memory_format=torch.contiguous_format)
    fill(old, value)
    return value
