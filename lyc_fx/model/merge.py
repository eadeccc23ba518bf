"""The live road: merge adapters into the parameters of an `nn.Module`, in place."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch
from torch import nn

from lyc_fx.base.foreign import find_scripted, flattening_reason, foreign_reason, offload_reason, shapeless_reason
from lyc_fx.base.packed import quantizer_of
from lyc_fx.binding.bind import bind
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, Stack, stacked
from lyc_fx.binding.twins import twins
from lyc_fx.choices import Convention
from lyc_fx.errors import NotApplicable, Unsupported
from lyc_fx.graph.program import BANK, module_aliases
from lyc_fx.merging.blockwise import threaded_scheduler
from lyc_fx.merging.effect import Effect
from lyc_fx.model.requantized import merge_requantized, refuse_quantized
from lyc_fx.model.weight_handle import WeightHandle
from lyc_fx.model.weight_handles import Values, find_weights
from lyc_fx.model.whole import Pipeline, as_module
from lyc_fx.naming.disk import names_on_disk


@torch.inference_mode(False)  # a new parameter must not be an inference tensor
@torch.no_grad()
def merge(
    model: nn.Module | Pipeline,
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
    sequential: bool = False,
    compute: torch.dtype | None = None,
    allow_nonfinite: bool = False,
    requantize: bool = False,
    lossy: bool = False,
    component: str | Sequence[str] | None = None,
) -> Report:
    """Merge adapters into the parameters of a model, or of a pipeline's components, in place:
    `W ← round(W + Σ change(W, strength))`.

    `adapters`, `strength`, `strict`, `convention` and `sequential` are as in `splice`. `compute` is the dtype of the
    sums (default: float64, where the device has it); the formula is that of the other roads (`families.merged`).
    `allow_nonfinite` accepts base weights that hold NaN or infinity. `component` names the component to adapt where
    several components of a pipeline have the same parameter names, such as `transformer` and `transformer_2` of Wan 2.2
    (a list names several); by default it is the first one, and the report says so.

    `requantize` merges into quantized weights too (torchao's, bitsandbytes'): each is dequantized, merged in float32,
    and quantized again as it was.

    The report's `kept` says how much of each change is left after the rounding to the dtype of the weight, and after
    quantizing again. `lossy` accepts a merge that keeps less than half of its changes, which is refused otherwise.

    Everything is checked before anything is changed. If the merge fails all the same, or is interrupted, the model is
    exactly as before: until the end, a copy of each changed weight is kept (on the CPU, or on the weight's GPU as long
    as half of its memory stays free). Apart from these copies, a merge needs memory for a few blocks of a weight; for
    T-LoRA, which needs singular vectors, for the whole weight. A weight that shares memory with another one gets memory
    of its own, which the report notes.

    Returns a report of what was applied where, and how much each weight changed. Raises BadAdapter, listing every
    adapter that matches no weight or does not fit, or naming a weight that overflows or is not finite in the base, or
    whose change is lost when it is quantized again, or if less than half of all changes is left; Unsupported for a
    captured program, for weights on the meta device, and for weights that are quantized (without `requantize`) or
    computed in a way that cannot be inverted. Warns with NothingChanged if every weight is as before, and with
    RoundedAway if less than 0.9 of all changes is left.
    """
    stack = stacked(adapters, strength, convention, sequential, allow_nonfinite=allow_nonfinite, component=component)
    module = as_module(model)
    refuse_attached(module)
    found, binding = bind_model(module, stack, strict=strict)
    if not requantize:
        refuse_quantized(found, binding)
    notes, effects = [], dict[str, Effect]()
    with ExitStack() as undo:
        with threaded_scheduler() as scheduler:
            for name in filter(binding.active, binding.targets):
                handle = found[name]
                notes += binding.doubts(name, handle.read(), transposed=handle.transposed)
                # A weight that cannot be overwritten in place is replaced, which needs its value at once.
                mode = scheduler if handle.obstacle is None else scheduler.run_now
                fill = partial(
                    binding.fill, name, scheduler=mode, transposed=handle.transposed, effects=effects, compute=compute
                )
                if handle.quantized is None:
                    handle.write(fill, undo)
                else:
                    kept = merge_requantized(name, handle.quantized, fill, undo, lossy=lossy)
                    effects[name] = replace(effects[name], kept=kept)
                notes += [handle.note] if handle.note is not None else []
            scheduler.finish()
        report = binding.finished(effects, notes)
        report.refuse_rounded_away(lossy=lossy)
        undo.pop_all()
    report.warn()
    return report


def refuse_attached(model: nn.Module) -> None:
    """Raise Unsupported for a model with attached adapters: what was computed from its weights would not follow."""
    if any(name.rpartition(".")[2] == BANK for name, _ in model.named_modules()):
        raise Unsupported("the model has adapters attached (lyc_fx.attach): detach() them before its weights change")


def bind_model(model: nn.Module, stack: Stack, *, strict: bool) -> tuple[dict[str, WeightHandle], Binding]:
    """Find the weights of a model (as `as_module` returns it) by name, and bind a stack to them. Raises as `merge`."""
    if find_scripted(model) is not None:
        raise Unsupported(
            "the model is TorchScript, or has a part that is: merge into the Python model that it was made from, and "
            "script that again"
        )
    if (reason := shapeless_reason(model) or flattening_reason(model)) is not None:
        raise Unsupported(reason)
    found, same = find_weights(model), module_aliases(model)
    weights = {n: s.weight for n, s in found.items() if n not in same}
    fused = twins(Values(found, weights))
    try:
        binding = bind(stack, weights, strict=strict, aliases=same, same=fused, elsewhere=partial(names_on_disk, model))
    except NotApplicable as error:
        packed = quantizer_of(dict(model.state_dict()))
        if packed is None:
            raise
        raise Unsupported(
            f"the model is quantized by {packed[0]} ({packed[1]}), so it does not hold the weights that adapters are "
            f"for: merge into the model from before quantization, and quantize that again.\n{error.faults}"
        ) from error
    stored = {name: handle.stored for name, handle in found.items() if name in binding.targets}
    for name, weight in stored.items():
        foreign = foreign_reason(weight) if found[name].quantized is None else None
        reason = foreign or offload_reason(model.get_submodule(name.rpartition(".")[0]), weight)
        if reason is not None:
            raise Unsupported(f"{name} {reason}")
    empty = [name for name, weight in stored.items() if weight.is_meta]
    if empty:
        raise Unsupported(f"{empty[0]} is on the meta device: load the model's weights before merging")
    return found, binding
