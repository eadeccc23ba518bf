"""Weights of a program that cannot be changed where they are, and those that several names share."""

from collections import defaultdict
from collections.abc import Collection, Mapping

from lyc_fx.binding.bound import Binding
from lyc_fx.checkpoint.programs.program import Program
from lyc_fx.checkpoint.ties import same_changes
from lyc_fx.errors import BadAdapter, LycFxError, NotApplicable, Unsupported, listing

_ROAD = "fold with the model instead: capture, splice, lyc_fx.fold, lyc_fx.export"


def same_tensors(program: Program, binding: Binding) -> dict[str, str]:
    """From the further names of tied weights to the first. Raises Unsupported if adapters make them differ."""
    groups: defaultdict[object, list[str]] = defaultdict(list)
    for name, held in program.held.items():
        groups[(held.range, held.stored.dtype, held.stored.shape, held.order)].append(name)
    for first, *others in groups.values():
        for other in others:
            if not same_changes(binding.active(first), binding.active(other)):
                raise Unsupported(
                    f"{program.path}: {first} and {other} are one tensor, and the adapters make them differ: {_ROAD}"
                )
    return {other: first for first, *others in groups.values() for other in others}


def refuse_odd(program: Program, merged: Collection[str], ties: Mapping[str, str]) -> None:
    """Raise Unsupported for a weight to merge that is not one tensor on its own in its file."""
    for name in merged:
        if name in program.odd:
            raise Unsupported(f"{program.path}: {name} {program.odd[name]}: {_ROAD}")
    chosen = set(merged)
    ranges = sorted((*held.range, name) for name, held in program.held.items() if name not in ties)
    widest = (program.path, 0, 0, "")
    for each in ranges:
        if each[0] == widest[0] and each[1] < widest[2] and {each[3], widest[3]} & chosen:
            raise Unsupported(
                f"{program.path}: {widest[3]} and {each[3]} share bytes, so that both would change: {_ROAD}"
            )
        widest = max(widest, each, key=lambda one: (one[0], one[2]))


def explained(error: NotApplicable, program: Program) -> LycFxError:
    """A better error where an adapter may be for a weight that cannot be changed, or that has lost its name."""
    unusable = [f"  {name} {why}" for name, why in program.odd.items() if name not in program.held]
    if unusable:
        return BadAdapter(f"{error}\n{listing('In this program cannot be changed:', unusable)}")
    if program.is_onnx and not any(name.endswith(".weight") for name in program.held):
        return BadAdapter(
            f"{error}\nNo weight of {program.path} has a name of the model's: export it with lyc_fx.export, or "
            "torch.onnx.export(…, optimize=False)"
        )
    return error
