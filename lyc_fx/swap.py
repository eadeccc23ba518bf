"""Adapters that come and go on a running model: each choice is merged into the base weights, which are kept."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor, nn

from lyc_fx.binding import Binding
from lyc_fx.blockwise import Run, threads
from lyc_fx.errors import Unsupported
from lyc_fx.families import Convention, Effect
from lyc_fx.live import bound
from lyc_fx.report import Report
from lyc_fx.slots import Slot
from lyc_fx.stack import Adapters, Blocks, stacked
from lyc_fx.stores import Store, store_for
from lyc_fx.undo import overwrite, preserved
from lyc_fx.whole import Pipeline, whole


def live(model: nn.Module | Pipeline, keep: str | os.PathLike[str] = "memory") -> "Live":
    """A model, or a pipeline, whose adapters may be changed at any time: `live(model).set({style: 0.8, detail: 0.5})`.

    `keep` says where the base weights are while adapters are on: "memory" (a copy on the CPU of each weight that is
    ever adapted), "pinned" (the same in page-locked memory, for a model on a GPU), "disk" or a folder (mapped
    temporary files), or the safetensors file that the model was loaded from.

    Raises BadFile where there is no such file or folder, and Unsupported for "pinned" without CUDA.
    """
    return Live(whole(model), store_for(keep))


@final
class Live:
    """A model and its base weights. As a context manager, it restores the base weights at the end.

    Parameters keep identity, memory and `requires_grad`, so that a compiled model is not compiled again. Hence
    weights that are tied, and those that are computed (weight norm, parametrizations), cannot be adapted here.
    """

    def __init__(self, model: nn.Module, store: Store) -> None:
        self._model = model
        self._store = store
        self._adapted: dict[str, Tensor] = {}
        self._written: dict[str, tuple[int, int]] = {}
        self.report = Report(())
        """Of the last `set`"""

    def __repr__(self) -> str:
        return f"<Live {type(self._model).__name__}: {len(self._adapted)} weights adapted>"

    @torch.inference_mode(False)
    @torch.no_grad()
    def set(
        self,
        adapters: Adapters,
        strength: float | Blocks = 1.0,
        *,
        strict: bool = True,
        convention: Convention = "interpolate",
        sequential: bool = False,
        compute: torch.dtype | None = None,
        allow_nonfinite: bool = False,
        component: str | Sequence[str] | None = None,
    ) -> Report:
        """Make the weights what `merge` with these arguments makes of the base: `W ← round(base + Σ change)`.

        What was set before has no influence; weights that are no longer adapted are the base's again, to the bit.
        Where this fails, or is interrupted, the model is as it was before the call, to the bit.

        Raises as `merge`; Unsupported for a weight that is tied or computed, and for one that something else has
        changed since it was first adapted; BadFile where the base cannot be kept or is not what the file holds.
        """
        stack = stacked(
            adapters,
            strength,
            convention=convention,
            sequential=sequential,
            allow_nonfinite=allow_nonfinite,
            component=component,
        )
        found, binding = bound(self._model, stack, strict=strict)
        wanted = {name: found[name] for name in filter(binding.active, binding.targets)}
        self._refuse(wanted)
        notes = [
            note
            for name, slot in wanted.items()
            for note in binding.doubts(name, self._base(name, slot), transposed=slot.transposed)
        ]
        effects: dict[str, Effect] = {}
        with ExitStack() as after, ExitStack() as undo:
            before, chosen = self._adapted, {name: slot.read() for name, slot in wanted.items()}
            after.callback(self._remember, before | chosen)
            undo.callback(setattr, self, "_adapted", before)
            self._adapted = before | chosen
            with threads() as run:
                for name in before.keys() - wanted.keys():
                    preserved(before[name], undo, self._store.copy)
                    overwrite(before[name], self._store.keep(name, before[name]))
                for name, slot in wanted.items():
                    self._write(name, slot, binding, undo, run, compute, effects, pristine=name not in before)
                run.finish()
            self._adapted = chosen
            self.report = binding.finished(effects, notes)
            undo.pop_all()
        return self.report

    def restore(self) -> Report:
        """Give every adapted weight the base's bits, as `set({})`, whatever else has changed it."""
        return self.set({})

    def _base(self, name: str, slot: Slot) -> Tensor:
        """A look at the base, which is not kept before something changes."""
        return self._store.keep(name, slot.read()) if name in self._store else slot.read()

    def _write(
        self,
        name: str,
        slot: Slot,
        binding: Binding,
        undo: ExitStack,
        run: Run,
        compute: torch.dtype | None,
        effects: dict[str, Effect],
        *,
        pristine: bool,
    ) -> None:
        tensor = slot.read()
        base = self._store.keep(name, tensor)
        if pristine:
            undo.callback(overwrite, tensor, base)
        else:
            preserved(tensor, undo, self._store.copy)
        binding.fill(name, base, tensor, run, transposed=slot.transposed, effects=effects, compute=compute)

    def _refuse(self, wanted: Mapping[str, Slot]) -> None:
        for name, slot in wanted.items():
            if slot.obstacle is not None:
                raise Unsupported(
                    f"{name} {slot.obstacle}: it cannot change where it lies, and another tensor in its place would "
                    "make a compiled model compile again; give it memory of its own before lyc_fx.live "
                    f"(model.{name} = nn.Parameter(…), or remove_parametrizations), or use lyc_fx.merge"
                )
            if name in self._written and self._written[name] != _mark(slot.read()):
                raise Unsupported(
                    f"{name} was changed by something else since it was adapted: restore() discards that change; "
                    "or make a new lyc_fx.live for the weights as they are"
                )

    def _remember(self, touched: Mapping[str, Tensor]) -> None:
        self._written |= {name: _mark(tensor) for name, tensor in touched.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()
        self._store.close()


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Changes with every write to a tensor, and with the tensor."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version
