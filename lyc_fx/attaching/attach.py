"""Attaching adapters to a living model: beside its layers, in eager and compiled code alike."""

from collections.abc import Mapping, Sequence
from math import isfinite
from types import TracebackType
from typing import Self, final

import torch
from torch import nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.attached_layers import Layers
from lyc_fx.attaching.bank import Bank
from lyc_fx.attaching.batched import Banks
from lyc_fx.attaching.chosen import Chosen
from lyc_fx.attaching.layer_program import How
from lyc_fx.attaching.notes import with_notes
from lyc_fx.attaching.prepared import Prepared
from lyc_fx.attaching.programs import Programs
from lyc_fx.attaching.staying import staying
from lyc_fx.attaching.units import Units, units
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, Stack, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter, Unsupported, WrongArgument
from lyc_fx.model.merge import bind_model
from lyc_fx.model.weight_handle import WeightHandle
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
        self._model = model
        self._layers = Layers(self._model, room, how, saved=saved)
        self._programs = Programs(room, how)
        self._chosen = Chosen()
        self.report = Report(())
        """The report of the last `set` or `swap`"""

    def __repr__(self) -> str:
        return f"<Attached {type(self._model).__name__}: {len(self._layers.by_path)} modules>"

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
        weights, binding, chosen, report = self._bound(stack, strict=strict)
        self._layers.forget_replaced()
        filled = self._programs.filled(self._model, self._layers.by_path, chosen, binding, weights)
        substituted = {path: chosen[path] for path in chosen if path not in filled}
        self._change(Chosen(len(stack.parts), binding, weights, filled, substituted))
        self.report = report
        return report

    @torch.inference_mode(False)
    @torch.no_grad()
    def prepare(
        self,
        adapters: Adapters,
        strength: float | Blocks = 1.0,
        *,
        strict: bool = True,
        convention: Convention = "interpolate",
        sequential: bool = False,
        component: str | Sequence[str] | None = None,
    ) -> Prepared:
        """Do all of `set` but the change itself, so that `swap` does it in the time of the copies.

        For adapters that take turns: `set` all of them once, those for later with strength 0, and prepare each choice.
        The model runs as before. What is returned needs the memory that the layers hold beside their weights; it is for
        the layers as they are now, and for base weights as they are now where anything is computed from these (DoRA,
        rotations, merged weights).

        Raises as `set`; BadAdapter too for adapters of another form, or for other layers, than those attached.
        Unsupported for a model that was moved since, and for base weights made in inference mode, if they are read.
        """
        stack = stacked(adapters, strength, convention=convention, sequential=sequential, component=component)
        weights, binding, chosen, report = self._bound(stack, strict=strict)
        every = staying(self._layers, self._programs, chosen, binding, weights, len(stack.parts))
        return Prepared.of(self._layers, every, report)

    @torch.inference_mode(False)
    @torch.no_grad()
    def swap(self, prepared: Prepared) -> Report:
        """Run with what `prepare` returned: the same as its `set`, by copies alone. Nothing is compiled again.

        Layers for which it has no adapters run without. `set_strengths` holds until the next swap.

        Raises WrongArgument, and all is as before, where the same numbers as by `set` are not certain: a layer has got
        another program by another `set`, was replaced or moved, or a base weight that was read has changed. (Writes to
        `weight.data` and by NumPy are not seen, because torch does not count them: prepare again after those.)
        """
        if not isinstance(prepared, Prepared):
            raise WrongArgument(f"swap() takes what prepare() returned, not {type(prepared).__name__}: or use set()")
        prepared.put(self._layers)
        self._chosen, self.report = prepared.chosen, prepared.report
        return self.report

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
        if not all(self._layers.by_path[path].is_at_home for path in chosen.filled):
            raise Unsupported(
                "the model has another dtype or is on another device than at the last set(): call it again"
            )
        self._change(chosen.with_strengths(strengths), others=False)

    def detach(self) -> None:
        """Take all adapters off: every module runs as before `attach`."""
        self._layers.detach()
        self._chosen = Chosen()

    def _bound(self, stack: Stack, *, strict: bool) -> tuple[Mapping[str, WeightHandle], Binding, Units, Report]:
        """All weights of the model, and what a stack is bound to. Raises as `attach`."""
        weights, binding = bind_model(self._model, stack, strict=strict)
        targets = {name: weights[name] for name in binding.targets}
        return weights, binding, units(self._model, targets), with_notes(binding, targets)

    def _change(self, chosen: Chosen, *, others: bool = True) -> None:
        self._layers.change(self._chosen, chosen, others=others)
        self._chosen = chosen

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
