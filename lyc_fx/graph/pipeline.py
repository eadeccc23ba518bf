"""Running passes on a copy of a program, verifying it after each, and recording how often each fired."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.adopt_result import take
from lyc_fx.graph.copies import cloned
from lyc_fx.graph.program import captured, facts, remember, without_autocast
from lyc_fx.graph.steps import Missed, Step
from lyc_fx.graph.validation import Validation
from lyc_fx.graph.verify import Snapshot, verify


def run(gm: GraphModule, *passes: PassBase, check: bool = False) -> GraphModule:
    """Apply passes in order to a copy of a program, and return the copy.

    With `check`, the program is also run on random inputs, before and after each pass (`lyc_fx.graph.validation`).
    Raises InvalidGraph, naming the pass that broke the program, and WrongArgument for anything but a captured program.
    """
    with without_autocast(), torch.inference_mode(False):  # later changes in place must be possible
        return _run(captured(gm), passes, check)


def _run(gm: GraphModule, passes: Sequence[PassBase], check: bool) -> GraphModule:
    validation = Validation.of(gm) if check else None
    gm = cloned(gm)
    for each in passes:
        before, previous, name = Snapshot.of(gm), cloned(gm) if check else gm, type(each).__name__
        steps = len(facts(gm).steps)
        take(gm, each(gm), name, steps)
        verify(gm, before, name)
        gm.recompile()
        if validation is not None:
            validation.check(gm, previous, name)
    return gm


def done(
    gm: GraphModule,
    name: str,
    fired: int,
    misses: tuple[Missed, ...] = (),
    rules: Mapping[str, int] = MappingProxyType({}),
) -> PassResult:
    """Make the result that a pass returns, and add a step to the program's history.

    `fired` is how often the pass changed something, `rules` the same for each of its rules.
    """
    remember(gm, steps=(*facts(gm).steps, Step(name, fired, misses, dict(rules))))
    return PassResult(gm, bool(fired))
