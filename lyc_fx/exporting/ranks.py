"""Ranks of an adapter's inputs that may vary as the inputs are declared, and that the program's conditions fix."""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from lyc_fx.graph.slots import ADAPTER

_INPUT = re.compile(r"L\['(\w+)'\]")


def fixed_ranks(exported: ExportedProgram) -> dict[str, int]:
    """The symbols of adapters' sizes that the program's conditions fix, with those sizes.

    torch writes down `36 * rank == 180`, and leaves it to the call to refuse other ranks.
    """
    conditions = [text for text in exported._guards_code if set(_INPUT.findall(text)) == {ADAPTER}]
    if not conditions:
        return {}
    adapter = _adapter(exported)
    slots: defaultdict[str, dict[Any, int]] = defaultdict(dict)
    for name, tensor in adapter.items():
        for size in tensor.shape:
            slots[name.rpartition(".")[0]].update(_symbols(size))
    held = {symbol: hint for of_slot in slots.values() for symbol, hint in of_slot.items()}

    def allowed(others: Mapping[Any, int]) -> bool:
        sized = {name: _Sized(tensor, {**held, **others}) for name, tensor in adapter.items()}
        return all(_holds(text, sized) for text in conditions)

    found: dict[str, int] = {}
    for of_slot in slots.values():
        if not allowed({symbol: hint + 1 for symbol, hint in of_slot.items()}):  # one rank may have several symbols
            found |= {str(s): hint for s, hint in of_slot.items() if not allowed({s: hint + 1})}
    return found


@final
@dataclass(frozen=True)
class _Sized:
    """What a condition sees of a tensor, at some values of the symbols."""

    tensor: Tensor
    values: Mapping[Any, int]

    def size(self) -> list[int]:
        return [s if isinstance(s, int) else int(s.node.expr.xreplace(self.values)) for s in self.tensor.shape]


def _holds(condition: str, adapter: Mapping[str, _Sized]) -> bool:
    try:
        return bool(eval(condition, {"__builtins__": {"min": min, "max": max}, "L": {ADAPTER: adapter}}))
    except Exception:  # a condition in other words: then no other rank is offered
        return False


def _symbols(size: int | torch.SymInt) -> dict[Any, int]:
    """The symbol that a size is, with its value in the example."""
    if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
        return {size.node.expr: size.node.hint or 2}
    return {}


def _adapter(exported: ExportedProgram) -> Mapping[str, Tensor]:
    """The inputs of the argument `adapter`, by name."""
    placeholders = {n.name: n.meta.get("val") for n in exported.graph_module.graph.find_nodes(op="placeholder")}
    leaves = [placeholders.get(arg.name) for arg in _user_inputs(exported)]
    spec = exported.call_spec.in_spec
    assert spec is not None
    _, kwargs = pytree.tree_unflatten(leaves, spec)
    found = kwargs[ADAPTER]
    assert isinstance(found, dict)
    return found


def _user_inputs(exported: ExportedProgram) -> Iterator[Any]:
    """All flat inputs, Python values among them."""
    for spec in exported.graph_signature.input_specs:
        if spec.kind is torch.export.graph_signature.InputKind.USER_INPUT:
            yield spec.arg
