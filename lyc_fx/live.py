"""The live road: adapters merged into the parameters of an `nn.Module`, in place."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lyc_fx.binding import Weight, bind
from lyc_fx.errors import Unsupported
from lyc_fx.families import Convention
from lyc_fx.program import aliases, module_aliases
from lyc_fx.report import Report
from lyc_fx.stack import Adapters, Blocks, stacked


@final
@dataclass(frozen=True)
class _Slot:
    """One weight of a model: how to read it, and how to replace it."""

    read: Callable[[], Tensor]
    write: Callable[[Tensor], None]
    transposed: bool = False

    @property
    def weight(self) -> Weight:
        value = self.read()
        return Weight(tuple(value.shape), value.dtype, self.transposed)


@torch.no_grad()
def merge(
    model: nn.Module,
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    compute: torch.dtype | None = None,
) -> Report:
    """Merge adapters into a model's parameters, in place: `W ← round(W + Σ change(W, strength))`.

    The same formula, in the same precision, as on the other roads (`families.merged`; `compute` asks for another
    dtype than float64). Everything is checked before anything is changed. A parameter that is tied to another
    module's, which no adapter names, is untied, and the report says so. Adapters, strengths, `convention` and
    `sequential` are as in `splice`.

    Raises BadAdapter, listing every adapter that finds no weight or does not fit, and Unsupported for weights
    on the meta device.
    """
    stack = stacked(adapters, strength, convention=convention, sequential=sequential)
    slots, notes = _slots(model)
    same = module_aliases(model)
    binding = bind(stack, {n: s.weight for n, s in slots.items() if n not in same}, strict=strict, aliases=same)
    empty = [name for name in binding.targets if slots[name].read().is_meta]
    if empty:
        raise Unsupported(f"{empty[0]} is on the meta device: load the model's weights before merging")
    said = []
    for name in binding.targets:
        if binding.active(name):
            slot, weight = slots[name], slots[name].read()
            said += binding.doubts(name, weight, transposed=slot.transposed)
            slot.write(binding.merged(name, weight, transposed=slot.transposed, compute=compute))
            said += [notes[name]] if name in notes else []
    return replace(binding.report, notes=tuple(said))


def _slots(model: nn.Module) -> tuple[dict[str, _Slot], dict[str, str]]:
    """Every weight by its name, and what to tell the user about those that are tied."""
    slots: dict[str, _Slot] = {}
    notes: dict[str, str] = {}
    names, same = aliases(model), module_aliases(model)
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for leaf, parameter in module._parameters.items():
            if parameter is None:
                continue
            name = f"{prefix}{leaf}"
            others = [n for n in names[id(parameter)] if same.get(n, n) != same.get(name, name)]
            if others:
                notes[name] = f"{name} was tied to {', '.join(others)}: it is untied"
            slots[name] = _parameter(module, leaf, tied=bool(others))
        for leaf in _computed(module):
            slots[f"{prefix}{leaf}"] = _computed_slot(module, leaf)
    return slots, notes


def _parameter(module: nn.Module, leaf: str, *, tied: bool) -> _Slot:
    def write(value: Tensor) -> None:
        old = module._parameters[leaf]
        assert old is not None
        if tied:
            module.register_parameter(leaf, nn.Parameter(value, requires_grad=old.requires_grad))
        else:
            old.copy_(value)

    transposed = leaf == "weight" and type(module).__name__ == "Conv1D"
    return _Slot(lambda: module.get_parameter(leaf), write, transposed)


def _computed(module: nn.Module) -> list[str]:
    """Weights that the module computes from other parameters: parametrized ones, and old-style weight norm."""
    registered = list(module.parametrizations) if parametrize.is_parametrized(module) else []  # type: ignore[arg-type]
    stored = module._parameters
    return registered + [n[:-2] for n in stored if n.endswith("_v") and f"{n[:-1]}g" in stored]


def _computed_slot(module: nn.Module, leaf: str) -> _Slot:
    def read() -> Tensor:
        if parametrize.is_parametrized(module, leaf):
            value = getattr(module, leaf)
            assert isinstance(value, Tensor)
            return value
        direction, magnitude = module.get_parameter(f"{leaf}_v"), module.get_parameter(f"{leaf}_g")
        return torch._weight_norm(direction, magnitude, _dim(magnitude))

    def write(value: Tensor) -> None:
        if parametrize.is_parametrized(module, leaf):
            setattr(module, leaf, value)
            return
        magnitude = module.get_parameter(f"{leaf}_g")
        module.get_parameter(f"{leaf}_v").copy_(value)
        magnitude.copy_(torch.norm_except_dim(value, 2, _dim(magnitude)))

    return _Slot(read, write)


def _dim(magnitude: Tensor) -> int:
    """The dimension that weight norm keeps, from the magnitude's shape; -1 is one norm for the whole weight."""
    kept = [i for i, size in enumerate(magnitude.shape) if size != 1]
    return kept[0] if kept else (0 if magnitude.dim() else -1)
