"""What reports, warnings and refusals say of changes that rounding takes away (`lyc_fx.merging.kept`)."""

from collections.abc import Mapping, Sequence

from lyc_fx.errors import counted
from lyc_fx.merging.kept import ENOUGH, LEAST

_NAMED = 5
"""How many weights a sentence names"""
ADVICE = (
    "the weights are stored too coarsely for it. Fold the adapters into the original weights (not quantized, of a "
    "wider dtype) and quantize the result again, or keep the adapters beside the model (lyc_fx.attach); lossy=True "
    "(command line: --lossy) accepts the loss"
)
"""What to do where less than half is left"""


def percent(share: float | None) -> str:
    """`98.7 %`, or `-` for what is not known."""
    return "-" if share is None else f"{100 * share:.3g} %"


def named(names: Sequence[str]) -> str:
    """The first of some names."""
    return ", ".join(names[:_NAMED]) + (" …" if len(names) > _NAMED else "")


def too_little(kept: Mapping[str, float], overall: float | None) -> str | None:
    """Say how little of the changes is left, and of which weights the least; None if it is enough."""
    if overall is None or overall >= ENOUGH:
        return None
    least = sorted((share, name) for name, share in kept.items() if share < ENOUGH)
    shown = named([f"{name} {percent(share)}" for share, name in least])
    more = f" ({len(least)} of {counted(len(kept), 'weight')})" if len(least) > _NAMED else ""
    return f"only {percent(overall)} of the change is left after rounding; least of {shown}{more}"


def poorly_kept(kept: Mapping[str, float]) -> str | None:
    """Name the weights that keep less than half of their change; None if there is none."""
    poor = sorted((share, name) for name, share in kept.items() if share < LEAST)
    shown = named([f"{name} ({percent(share)})" for share, name in poor])
    return f"less than half of the change of {counted(len(poor), 'weight')} is left: {shown}" if poor else None
