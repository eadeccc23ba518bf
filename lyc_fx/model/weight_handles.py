"""The weights of a live model by their names."""

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, final

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from torch.nn.utils import parametrize
from torch.nn.utils.weight_norm import WeightNorm

from lyc_fx.base.conv1d import stored_in_out
from lyc_fx.base.foreign import hook_computed
from lyc_fx.base.quantizers import Quantized, quantized
from lyc_fx.errors import Unsupported
from lyc_fx.graph.program import BANK, module_aliases
from lyc_fx.model.computed_weights import parametrized, weight_norm
from lyc_fx.model.memory import find_shared, overlaps_itself
from lyc_fx.model.undo import save_for_undo
from lyc_fx.model.weight_handle import Fill, WeightHandle, filled


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
            found[name] = _unless_shared(parametrized(module, name, name in in_out), name, parts, memory)
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm):
                name = f"{prefix}{hook.name}"
                parts = tuple(module.get_parameter(f"{hook.name}_{part}") for part in "gv")
                found[name] = _unless_shared(weight_norm(module, hook, name in in_out), name, parts, memory)
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
        value = filled(fill, old)
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
