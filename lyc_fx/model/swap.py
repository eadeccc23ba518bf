"""Swapping adapters on a running model: each choice is merged into the base weights, which are kept in a store."""

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor, nn

from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import Unsupported
from lyc_fx.merging.blockwise import Scheduler, threaded_scheduler
from lyc_fx.merging.effect import Effect
from lyc_fx.model.merge import bind_model, refuse_attached
from lyc_fx.model.requantized import refuse_quantized
from lyc_fx.model.stores import Store, make_store
from lyc_fx.model.undo import overwrite, save_for_undo
from lyc_fx.model.weight_handle import WeightHandle
from lyc_fx.model.whole import Pipeline, as_module


def live(model: nn.Module | Pipeline, keep: str | os.PathLike[str] = "memory") -> "Live":
    """Make a model or a pipeline whose adapters can be changed at any time:
    `live(model).set({style: 0.8, detail: 0.5})`.

    `keep` is where the base weights are stored while adapters are merged: "memory" (a copy on the CPU of each weight
    that is ever adapted), "pinned" (the same in page-locked memory, for a model on a GPU), "disk" or a folder
    (memory-mapped temporary files), or the path of the safetensors file that the model was loaded from.

    Raises BadFile if there is no such file or folder, and Unsupported for "pinned" without CUDA.
    """
    return Live(as_module(model), make_store(keep))


@final
class Live:
    """A model and its base weights. As a context manager, it restores the base weights at the end.

    Parameters keep their identity, memory and `requires_grad`, so that a compiled model is not compiled again.
    Therefore weights that are tied or computed (weight norm, parametrizations) cannot be adapted here.
    """

    def __init__(self, model: nn.Module, store: Store) -> None:
        self._model = model
        self._store = store
        self._adapted: dict[str, Tensor] = {}
        self._written: dict[str, tuple[int, int]] = {}
        self.report = Report(())
        """The report of the last `set`"""

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
        lossy: bool = False,
        component: str | Sequence[str] | None = None,
    ) -> Report:
        """Set the weights to what `merge` with the same arguments makes of the base: `W ← round(base + Σ change)`.

        Earlier calls have no influence; weights that are no longer adapted get exactly the values of the base. If this
        fails or is interrupted, the model is exactly as before the call.

        Raises as `merge`; also Unsupported for a weight that is tied or computed, or that other code has changed since
        it was adapted; BadFile if the base cannot be stored, or differs from the file given as `keep`.
        """
        stack = stacked(
            adapters, strength, convention, sequential, allow_nonfinite=allow_nonfinite, component=component
        )
        refuse_attached(self._model)
        found, binding = bind_model(self._model, stack, strict=strict)
        refuse_quantized(found, binding)
        wanted = {name: found[name] for name in filter(binding.active, binding.targets)}
        self._refuse(wanted)
        notes = [
            note
            for name, handle in wanted.items()
            for note in binding.doubts(name, self._base(name, handle), transposed=handle.transposed)
        ]
        effects: dict[str, Effect] = {}
        with ExitStack() as after, ExitStack() as undo:
            before, chosen = self._adapted, {name: handle.read() for name, handle in wanted.items()}
            after.callback(self._remember, before | chosen)
            undo.callback(setattr, self, "_adapted", before)
            self._adapted = before | chosen
            with threaded_scheduler() as scheduler:
                for name in before.keys() - wanted.keys():
                    save_for_undo(before[name], undo, self._store.copy)
                    overwrite(before[name], self._store.keep(name, before[name]))
                for name, handle in wanted.items():
                    self._write(name, handle, binding, undo, scheduler, compute, effects, pristine=name not in before)
                scheduler.finish()
            report = binding.finished(effects, notes)
            report.refuse_rounded_away(lossy=lossy)
            self._adapted, self.report = chosen, report
            undo.pop_all()
        report.warn_of_rounding()
        return report

    def restore(self) -> Report:
        """Give every adapted weight exactly its base value, as `set({})`, even if other code has changed it."""
        return self.set({})

    def _base(self, name: str, handle: WeightHandle) -> Tensor:
        """Return the base of a weight, without storing it yet: only weights that change are stored."""
        return self._store.keep(name, handle.read()) if name in self._store else handle.read()

    def _write(
        self,
        name: str,
        handle: WeightHandle,
        binding: Binding,
        undo: ExitStack,
        scheduler: Scheduler,
        compute: torch.dtype | None,
        effects: dict[str, Effect],
        *,
        pristine: bool,
    ) -> None:
        tensor = handle.read()
        base = self._store.keep(name, tensor)
        if pristine:
            undo.callback(overwrite, tensor, base)
        else:
            save_for_undo(tensor, undo, self._store.copy)
        binding.fill(name, base, tensor, scheduler, transposed=handle.transposed, effects=effects, compute=compute)

    def _refuse(self, wanted: Mapping[str, WeightHandle]) -> None:
        for name, handle in wanted.items():
            if handle.obstacle is not None:
                raise Unsupported(
                    f"{name} {handle.obstacle}: it cannot be overwritten in place, and replacing it would make a "
                    "compiled model compile again; give it memory of its own before lyc_fx.live "
                    f"(model.{name} = nn.Parameter(…), or remove_parametrizations), or use lyc_fx.merge"
                )
            if name in self._written and self._written[name] != _mark(handle.read()):
                raise Unsupported(
                    f"{name} was changed by something else since it was adapted: call restore() to discard that "
                    "change, or lyc_fx.live(model) again to make the current weights the base"
                )

    def _remember(self, touched: Mapping[str, Tensor]) -> None:
        self._written |= {name: _mark(tensor) for name, tensor in touched.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.restore()
        finally:
            self._store.close()


def _mark(tensor: Tensor) -> tuple[int, int]:
    """Return a value that differs for another tensor, and after every write to the same one."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version
