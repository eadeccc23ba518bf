"""Whether the weights of a checkpoint are stored `(out, in)` or `(in, out)`, as in Conv1D of GPT-2.

A checkpoint does not record it, but the bias of a layer has one value per output: a weight `(a, b)` with a bias `(b)`
and a ≠ b is `(in, out)`. For a square weight the user must give it by patterns: a pattern means `(in, out)`, and one
after `!` means `(out, in)`. The bare projections of CLIP, also `(in, out)`, are recognized by their names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from lyc_fx.binding.fitting import Weight
from lyc_fx.errors import BadAdapter
from lyc_fx.naming import projections

_SHOWN = 5
"""How many weights a message names"""


def with_orientation(weights: Mapping[str, Weight], patterns: tuple[str, ...]) -> dict[str, Weight]:
    """Return the weights with `transposed` set for those that are stored as `(in, out)`.

    Raises BadAdapter for a pattern that matches no weight, and so is probably misspelt.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in weights):
            raise BadAdapter(f"transposed: no weight matches {pattern!r}; the first is {next(iter(weights), None)}")
    shown = {*_shown_by_bias(weights), *projections(weights)}
    return {
        name: replace(weight, transposed=len(weight.shape) == 2 and _matched(name, patterns, name in shown))
        for name, weight in weights.items()
    }


def refuse_ambiguous(weights: Mapping[str, Weight], targets: Iterable[str], patterns: tuple[str, ...]) -> None:
    """Raise BadAdapter for square target weights of a checkpoint in which another weight is stored as `(in, out)`.

    Such a weight may be stored either way, unless a pattern matches it.
    """
    example = next(_shown_by_bias(weights), None)
    if example is None:
        return
    square = [name for name in targets if len({*weights[name].shape}) == 1 and _bias(weights, name) is not None]
    ambiguous = [name for name in square if not any(fnmatchcase(name, p.removeprefix("!")) for p in patterns)]
    if ambiguous:
        more = f" and {len(ambiguous) - _SHOWN} more" if len(ambiguous) > _SHOWN else ""
        raise BadAdapter(
            f"{', '.join(ambiguous[:_SHOWN])}{more}: square, so the shape does not show whether it is stored as "
            f"(out, in), or as (in, out) like {example} {weights[example].shape} of this checkpoint. Say so by a "
            f'pattern: transposed=["{ambiguous[0]}"] (command line: --transposed PATTERN) for (in, out), as in GPT-2, '
            f'or "!{ambiguous[0]}" for (out, in)'
        )


def _matched(name: str, patterns: tuple[str, ...], otherwise: bool) -> bool:
    """Return what the last matching pattern says, or `otherwise` without one."""
    said = [not pattern.startswith("!") for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))]
    return said[-1] if said else otherwise


def _shown_by_bias(weights: Mapping[str, Weight]) -> Iterator[str]:
    """Yield the weights whose bias shows that they are stored as `(in, out)`."""
    for name, weight in weights.items():
        bias = _bias(weights, name)
        if bias is not None and weight.shape[0] != weight.shape[1] and bias == weight.shape[1]:
            yield name


def _bias(weights: Mapping[str, Weight], name: str) -> int | None:
    """Return how many values the bias of a matrix has; None without a bias."""
    bias = weights.get(f"{name.removesuffix('weight')}bias")
    matrix = name.endswith("weight") and len(weights[name].shape) == 2
    return bias.shape[0] if matrix and bias is not None and len(bias.shape) == 1 else None
