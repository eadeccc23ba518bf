"""Whether the weights of a checkpoint are stored `(out, in)` or `(in, out)`, as in Conv1D of GPT-2.

A checkpoint does not say it, but the bias of a layer has one value per output: a weight `(a, b)` with a bias `(b)`,
a ≠ b, is `(in, out)`. A square one is known only from what the user says, by patterns: `!` before a pattern means
`(out, in)`. The bare projections of CLIP are known by their names.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from lyc_fx.errors import BadAdapter
from lyc_fx.fitting import Weight
from lyc_fx.naming import projections

_SHOWN = 5


def oriented(weights: Mapping[str, Weight], patterns: tuple[str, ...]) -> dict[str, Weight]:
    """The weights with their orientation. Raises BadAdapter for a pattern that matches none: it is misspelt."""
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern.removeprefix("!")) for name in weights):
            raise BadAdapter(f"transposed: no weight matches {pattern!r}; the first is {next(iter(weights), None)}")
    shown = {*_shown(weights), *projections(weights)}
    return {
        name: replace(weight, transposed=len(weight.shape) == 2 and _said(name, patterns, name in shown))
        for name, weight in weights.items()
    }


def refuse_doubtful(weights: Mapping[str, Weight], targets: Iterable[str], patterns: tuple[str, ...]) -> None:
    """Raise BadAdapter for square weights that may be stored either way, since others are stored `(in, out)`."""
    example = next(_shown(weights), None)
    if example is None:
        return
    square = [name for name in targets if len({*weights[name].shape}) == 1 and _bias(weights, name) is not None]
    doubtful = [name for name in square if not any(fnmatchcase(name, p.removeprefix("!")) for p in patterns)]
    if doubtful:
        more = f" and {len(doubtful) - _SHOWN} more" if len(doubtful) > _SHOWN else ""
        raise BadAdapter(
            f"{', '.join(doubtful[:_SHOWN])}{more}: square, so that nothing tells whether stored (out, in), or "
            f"(in, out) as {example} {weights[example].shape} of this checkpoint is by its bias. Say it with patterns: "
            f'transposed=["{doubtful[0]}"] (command line: --transposed PATTERN) for (in, out), as in GPT-2; '
            f'"!{doubtful[0]}" for (out, in)'
        )


def _said(name: str, patterns: tuple[str, ...], otherwise: bool) -> bool:
    """What the last pattern that matches says."""
    said = [not pattern.startswith("!") for pattern in patterns if fnmatchcase(name, pattern.removeprefix("!"))]
    return said[-1] if said else otherwise


def _shown(weights: Mapping[str, Weight]) -> Iterator[str]:
    """The weights whose bias shows them to be `(in, out)`."""
    for name, weight in weights.items():
        bias = _bias(weights, name)
        if bias is not None and weight.shape[0] != weight.shape[1] and bias == weight.shape[1]:
            yield name


def _bias(weights: Mapping[str, Weight], name: str) -> int | None:
    """How many values the bias beside a matrix has; None where there is none."""
    bias = weights.get(f"{name.removesuffix('weight')}bias")
    matrix = name.endswith("weight") and len(weights[name].shape) == 2
    return bias.shape[0] if matrix and bias is not None and len(bias.shape) == 1 else None
