"""Running passes: on a copy, verified after each one, with a record of how often each fired."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Any

from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.errors import LycFxError
from lyc_fx.program import Step, captured, cloned, facts, remember, without_autocast
from lyc_fx.validation import Validation
from lyc_fx.verify import Snapshot, verify


def find(name: str, **options: Any) -> PassBase:
    """The pass of this name: class `Name` of the file `passes/name.py`, made with these options."""
    try:
        module = import_module(f"lyc_fx.passes.{name}")
    except ModuleNotFoundError as error:
        raise LycFxError(f"there is no pass {name}") from error
    made = getattr(module, name.title().replace("_", ""))(**options)
    assert isinstance(made, PassBase)
    return made


def run(gm: GraphModule, *passes: PassBase, check: bool = False) -> GraphModule:
    """Apply passes in order to a copy of a program. Raises InvalidGraph, naming the pass that broke it, and
    WrongArgument for what is no captured program.

    With `check`, the program is also run on random inputs, before and after each pass (`lyc_fx.validation`).
    """
    with without_autocast():
        return _run(captured(gm), passes, check)


def _run(gm: GraphModule, passes: Sequence[PassBase], check: bool) -> GraphModule:
    validation = Validation.of(gm) if check else None
    gm = cloned(gm)
    for each in passes:
        before, previous = Snapshot.of(gm), cloned(gm) if check else gm
        result = each(gm)
        assert result is not None
        verify(gm, before, type(each).__name__)
        gm.recompile()
        if validation is not None:
            validation.check(gm, previous, type(each).__name__)
    return gm


def done(
    gm: GraphModule,
    name: str,
    fired: int,
    misses: tuple[str, ...] = (),
    rules: Mapping[str, int] = MappingProxyType({}),
) -> PassResult:
    """What a pass returns: its result, with a step added to the program's history."""
    remember(gm, steps=(*facts(gm).steps, Step(name, fired, misses, dict(rules))))
    return PassResult(gm, bool(fired))
