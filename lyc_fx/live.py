"""The live road: adapters merged into the parameters of an `nn.Module`, in place."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

import torch
from torch import nn

from lyc_fx.binding import Binding, bind
from lyc_fx.blockwise import threads
from lyc_fx.errors import Unsupported
from lyc_fx.families import Convention, Effect
from lyc_fx.foreign import flattened, foreign, offloaded, scripted, shapeless
from lyc_fx.naming.disk import names_on_disk
from lyc_fx.program import module_aliases
from lyc_fx.report import Report
from lyc_fx.slots import Slot, slots
from lyc_fx.stack import Adapters, Blocks, Stack, stacked
from lyc_fx.twins import twins
from lyc_fx.whole import Pipeline, whole


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
    component: str | Sequence[str] | None = None,
) -> Report:
    """Merge adapters into the parameters of a model, or of a pipeline's components, in place:
    `W ← round(W + Σ change(W, strength))`.

    The same formula, in the same precision, as on the other roads (`families.merged`; `compute` asks for another
    dtype than float64). Everything is checked before anything is changed, and where a merge fails all the same
    (or is interrupted) the model is as it was, to the bit: until the end, a copy of each changed weight is kept (on
    the CPU; a GPU's where it lies, as long as half of that memory is free). Besides these copies, a merge needs
    memory for some blocks of a weight (all of it under T-LoRA, whose singular vectors are those of the whole). A
    weight that shares memory with another one gets its own, and the report says so, and how much each weight changed.
    Adapters, strengths, `convention` and `sequential` are as in `splice`.

    `component` says which is meant of a pipeline's components that have the same names, such as `transformer` and
    `transformer_2` of Wan 2.2 (or several of them); without it the first, and the report says so.

    Raises BadAdapter, listing every adapter that finds no weight or does not fit, or naming a merged weight that
    overflows, or a base weight that holds NaN or infinity (unless `allow_nonfinite`); Unsupported for a captured
    program, and for weights on the meta device or computed in a way that cannot give the merged weight. Warns with
    NothingChanged where all weights are as they were.
    """
    stack = stacked(
        adapters,
        strength,
        convention=convention,
        sequential=sequential,
        allow_nonfinite=allow_nonfinite,
        component=component,
    )
    found, binding = bound(whole(model), stack, strict=strict)
    notes, effects = [], dict[str, Effect]()
    with ExitStack() as undo:
        with threads() as run:
            for name in filter(binding.active, binding.targets):
                slot = found[name]
                notes += binding.doubts(name, slot.read(), transposed=slot.transposed)
                mode = run if slot.obstacle is None else run.now  # then it is not overwritten, but put into place
                fill = partial(
                    binding.fill, name, run=mode, transposed=slot.transposed, effects=effects, compute=compute
                )
                slot.write(fill, undo)
                notes += [slot.note] if slot.note is not None else []
            run.finish()
        undo.pop_all()
    report = binding.finished(effects, notes)
    report.warn()
    return report


def bound(model: nn.Module, stack: Stack, *, strict: bool) -> tuple[dict[str, Slot], Binding]:
    """The weights of a model (`whole`) by name, and what a stack does to them. Raises as `merge`."""
    if scripted(model) is not None:
        raise Unsupported(
            "the model is TorchScript, or has a part that is: merge into the Python model that it was made of, and "
            "script that again"
        )
    if (reason := shapeless(model) or flattened(model)) is not None:
        raise Unsupported(reason)
    found, same = slots(model), module_aliases(model)
    weights = {n: s.weight for n, s in found.items() if n not in same}
    fused = twins({name: found[name].read() for name in weights})
    binding = bind(stack, weights, strict=strict, aliases=same, same=fused, elsewhere=partial(names_on_disk, model))
    for name in binding.targets:
        path = name.rpartition(".")[0]
        weight = found[name].read()
        reason = foreign(weight) or offloaded(model.get_submodule(path), weight)
        if reason is not None:
            raise Unsupported(f"{name} {reason}")
    empty = [name for name in binding.targets if found[name].read().is_meta]
    if empty:
        raise Unsupported(f"{empty[0]} is on the meta device: load the model's weights before merging")
    return found, binding
