"""Other adapters in the place of a program's own, without another compilation."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import WrongArgument
from lyc_fx.graph.places import Filled
from lyc_fx.graph.program import captured, facts, get_tensor, remember, uncompiled
from lyc_fx.graph.staging import restage


@torch.inference_mode(False)
@torch.no_grad()
def exchange(
    program: GraphModule,
    adapters: Adapters,
    strength: float | Blocks = 1.0,
    *,
    strict: bool = True,
    convention: Convention = "interpolate",
) -> Report:
    """Put other adapters in the place of those that a program was spliced with, and set their strengths.

    The program, lowered, staged and compiled or not, must have been made by `splice(…, rank=N)`: it then takes, for the
    same weights or fewer, adapters of the same algorithm and variant of any rank up to N, at any strength. As many sets
    may be given as it was spliced with, or fewer; the n-th takes the place of the n-th. Tensors are overwritten in
    place, so that nothing is compiled again. Returns the report, which `lyc_fx.report(program)` returns from then on.

    Raises BadAdapter for an adapter without a place, and for a staged weight that overflows; else as `splice`. Raises
    WrongArgument for a program that was spliced without `rank`, and for more sets than it has places for. After an
    error all is as before.
    """
    if isinstance(program, nn.Module):
        program = uncompiled(program)  # type: ignore[assignment]  # `captured` checks it
    places, known = facts(captured(program)).places, facts(program).known
    if places is None or known is None:
        raise WrongArgument("the program has no places for other adapters: lyc_fx.splice(…, rank=N) makes them")
    stack, sets = stacked(adapters, strength, convention=convention), places.sets
    if len(stack.parts) > len(sets):
        raise WrongArgument(f"{len(stack.parts)} adapter sets, and the program was spliced with {len(sets)}")
    binding = known.bind(stack, strict=strict)
    filled = list(places.filled(binding))
    before = {name: get_tensor(program, name).clone() for term, _ in filled for name in term.names}
    try:
        fill(filled, places.room.numbers, lambda name: get_tensor(program, name))
        for index, name in enumerate(sets):
            get_tensor(program, name).fill_(stack.parts[index].strength if index < len(stack.parts) else 0.0)
        if facts(program).staging is not None:
            restage(program)
    except BaseException:
        for name, tensor in before.items():
            get_tensor(program, name).copy_(tensor)
        if facts(program).staging is not None:
            restage(program)
        raise
    remember(program, report=binding.report)
    return binding.report


def fill(
    filled: Iterable[Filled], numbers: Callable[..., dict[str, float]], tensor_of: Callable[[str], Tensor]
) -> None:
    """Overwrite the tensors of places, which `tensor_of` finds by name; what gets nothing has no effect."""
    for term, bound in filled:
        if bound is None:
            tensor_of(term.numbers["share"]).zero_()
            continue
        for field, factor in bound.adapter.factors().items():
            tensor_of(term.places[field]).copy_(factor)
        for number, value in numbers(bound.adapter, bound.factor).items():
            tensor_of(term.numbers[number]).fill_(value)
