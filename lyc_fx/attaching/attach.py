"""Attaching adapters to a living model: beside its layers, in eager and compiled code alike."""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import TracebackType
from typing import Self, final

import torch
from torch import Tensor, nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.bank import Bank
from lyc_fx.attaching.batched import Banks
from lyc_fx.attaching.chosen import Chosen
from lyc_fx.attaching.layer import Layer
from lyc_fx.attaching.layer_program import How, LayerProgram
from lyc_fx.attaching.notes import with_notes
from lyc_fx.attaching.programs import Programs
from lyc_fx.attaching.units import named, units
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter, Unsupported, WrongArgument
from lyc_fx.merging.blockwise import threaded_scheduler
from lyc_fx.model.merge import bind_model
from lyc_fx.model.whole import Pipeline, as_module


def attach(
    model: nn.Module | Pipeline,
    adapters: Adapters = (),
    strength: float | Blocks = 1.0,
    *,
    rank: int | None = None,
    resident: bool = False,
    trainable: bool = False,
    saved: bool = False,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    component: str | Sequence[str] | None = None,
) -> "Attached":
    """Let the layers of a model, or of a pipeline's components, run with adapters beside their weights, unmerged.

    The model stays what it is: its class, code, parameters and state dict. Each adapted layer is captured, spliced and
    lowered by itself (once for all layers that are alike), and runs as that program; so any input size, `generate`, KV
    caches, checkpointing and `torch.compile` work as before. What depends on factors, strengths and weights alone is
    computed once, in `set`.

    `rank`: factors are filled up with zeros to it, so that adapters of any smaller rank take the place of these without
    a recompile (`Attached.set`). `resident`: each layer runs with a merged weight beside its own instead of chains, as
    fast as merged, for the memory of these weights and a slower `set`. `trainable`: factors are parameters, and nothing
    is computed beforehand. `saved`: the state dict has the factors too. All else is as in `lyc_fx.merge`.

    Modules that are no Linear, Conv or Embedding (norms, `MultiheadAttention`) run their own code with a merged weight
    beside their own. Weights that a module computes (weight norm, parametrizations), recurrent layers, and modules
    whose forward was replaced raise Unsupported.
    """
    if resident and trainable:
        raise WrongArgument("resident=True computes weights beforehand, and trainable=True needs them at each call")
    how: How = "resident" if resident else "trainable" if trainable else "chained"
    attached = Attached(as_module(model), Room(rank), how, saved=saved)
    attached.set(adapters, strength, strict=strict, convention=convention, sequential=sequential, component=component)
    return attached


@final
class Attached:
    """Adapters beside the layers of a model. As a context manager, it takes them off at the end."""

    def __init__(self, model: nn.Module, room: Room, how: How, *, saved: bool) -> None:
        if any(isinstance(module, (Bank, Banks)) for module in model.modules()):
            raise Unsupported("the model has adapters attached already: use their set(), or detach() them first")
        self._model, self._room, self._how, self._saved = model, room, how, saved
        self._layers: dict[str, Layer] = {}
        self._programs = Programs(room, how)
        self._chosen = Chosen()
        self.report = Report(())
        """The report of the last `set`"""

    def __repr__(self) -> str:
        return f"<Attached {type(self._model).__name__}: {len(self._layers)} modules>"

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
        component: str | Sequence[str] | None = None,
    ) -> Report:
        """Run with these adapters instead of those before.

        Where a layer's adapters have the form of those before (algorithm, variant, and rank up to `rank`), tensors are
        overwritten in place, and what was compiled is not compiled again; another strength is always of that kind. So
        give all adapters that you switch between at first, those for later with strength 0. Other layers get a program
        of their own. Weights that have changed since are read anew. Raises as `attach`; then all is as before.
        """
        stack = stacked(adapters, strength, convention=convention, sequential=sequential, component=component)
        model = self._model
        found, binding = bind_model(model, stack, strict=strict)
        targets = {name: found[name] for name in binding.targets}
        chosen = units(model, targets)
        report = with_notes(binding, targets)
        self._forget_replaced()
        prepared = self._programs.prepared(model, self._layers, chosen, binding, targets)
        substituted = {path: chosen[path] for path in chosen if path not in prepared}
        self._change(Chosen(len(stack.parts), binding, targets, prepared, substituted))
        self.report = report
        return report

    @torch.inference_mode(False)
    @torch.no_grad()
    def set_strengths(self, *strengths: float) -> None:
        """Give the sets of the last `set` other strengths, in the order in which they were given there.

        Nothing is bound or checked anew, so that this suits a schedule over steps. Block weights stay.

        Raises WrongArgument for another number of strengths, and for what is no number; BadAdapter for one that is not
        finite. Then all is as before.
        """
        chosen = self._chosen
        if len(strengths) != chosen.sets:
            raise WrongArgument(f"{len(strengths)} strengths for {chosen.sets} adapter sets")
        if not all(isinstance(each, (int, float)) for each in strengths):
            raise WrongArgument(f"the strengths {', '.join(map(repr, strengths))} are not all numbers")
        if not all(map(isfinite, strengths)):
            raise BadAdapter(f"the strengths {', '.join(map(str, strengths))} are not all finite")
        if not all(self._layers[path].is_at_home for path in chosen.prepared):
            raise Unsupported(
                "the model has another dtype or is on another device than at the last set(): call it again"
            )
        self._change(chosen.with_strengths(strengths), others=False)

    def detach(self) -> None:
        """Take all adapters off: every module runs as before `attach`."""
        for layer in self._layers.values():
            layer.detach()
        self._layers.clear()
        self._chosen = Chosen()

    def _change(self, chosen: Chosen, *, others: bool = True) -> None:
        """Put a choice into its places; if that fails, leave those before. `others`: more than strengths may differ."""
        merged, before, had = self._merged(chosen), self._chosen, set(self._layers)
        try:
            self._put(chosen, merged, others=others)
        except BaseException:
            for path in self._layers.keys() - had:
                self._layers.pop(path).detach()
            self._put(before, self._merged(before), others=others)
            raise
        self._chosen = chosen

    def _put(self, chosen: Chosen, merged: Mapping[str, Mapping[str, Tensor]], *, others: bool) -> None:
        for path in self._layers.keys() - chosen.prepared.keys() - merged.keys():
            self._clear(path)
        for path, (program, filled) in chosen.prepared.items():
            with named(path):
                self._layer(path, program).fill(filled, self._room, others=others)
        for path, values in merged.items():
            self._substitute(path, values)

    def _layer(self, path: str, program: LayerProgram) -> Layer:
        layer = self._layers.get(path)
        if layer is None or layer.program is not program:
            if layer is not None:
                layer.detach()
            layer = Layer.chained(self._model.get_submodule(path), program, saved=self._saved)
            self._layers[path] = layer
        return layer

    def _merged(self, chosen: Chosen) -> dict[str, dict[str, Tensor]]:
        """The merged weights of modules without a program, by path and by their names in the module."""
        found: dict[str, dict[str, Tensor]] = {}
        if not chosen.substituted:
            return found  # without starting threads, which would take a fifth of a change of strengths
        with threaded_scheduler() as scheduler:
            for path, names in chosen.substituted.items():
                if self._how == "trainable":
                    raise Unsupported(f"{next(iter(names.values()))}: only Linear, Conv and Embedding can be trained")
                for own, name in names.items():
                    handle = chosen.targets[name]
                    out = torch.empty_like(base := handle.read(), memory_format=torch.contiguous_format)
                    chosen.binding.fill(name, base, out, scheduler, transposed=handle.transposed, effects={})
                    found.setdefault(path, {})[own] = out
            scheduler.finish()
        return found

    def _substitute(self, path: str, values: Mapping[str, Tensor]) -> None:
        layer = self._layers.get(path)
        if layer is not None and values.keys() == layer.values.keys():
            for name, tensor in layer.values.items():
                tensor.copy_(values[name])
            return
        if layer is not None:
            layer.detach()
        module = self._model.get_submodule(path)
        self._layers[path] = Layer.substituted(module, {n: v.detach() for n, v in values.items()})

    def _clear(self, path: str) -> None:
        """Let a module run as without adapters, and keep its program where strength 0 does that."""
        layer = self._layers[path]
        terms = layer.terms
        if terms and layer.is_at_home and all(term.adapter.inert(0.0) for term in terms):
            layer.fill([(term, None) for term in terms], self._room)
        else:
            self._layers.pop(path).detach()

    def _forget_replaced(self) -> None:
        """Drop the layers whose modules are no longer the model's."""
        current = dict(self._model.named_modules(remove_duplicate=False))
        for path in [path for path, layer in self._layers.items() if current.get(path) is not layer.module]:
            self._layers.pop(path).detach()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
