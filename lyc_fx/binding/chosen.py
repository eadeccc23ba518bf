"""Reading the argument `adapters` of all public functions, in every form that it may have."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import WrongArgument
from lyc_fx.formats import load

Blocks = Mapping[str, float]
"""Strength factors by fnmatch pattern over the model's weight names; the first matching pattern counts, else 1"""
Source = AdapterSet | str | os.PathLike[str] | Mapping[str, Tensor]
"""One adapter set, as `load` returns it or takes it: a file, a PEFT directory, or a dict of tensors"""
Adapters = (
    Source
    | Sequence[Source | tuple[Source, float | Blocks]]
    | Mapping[AdapterSet | str | os.PathLike[str], float | Blocks]
)
"""One adapter set; a sequence of sets, each alone or with its strength; or a mapping from sets to strengths"""
_FORMS = "a path, what lyc_fx.load returns, a list of these or of (adapters, strength) pairs, or {adapters: strength}"


def chosen(adapters: Adapters) -> list[tuple[AdapterSet, float | Blocks]]:
    """Return adapter sets with their strengths (default 1), loading files.

    Raises WrongArgument for an argument of any other form, and what `load` raises.
    """
    given: Any = adapters
    if _is_source(given):
        return [(one(given), 1.0)]
    if isinstance(given, Mapping):
        return [(one(key), strength) for key, strength in given.items()]
    if not isinstance(given, Sequence):
        raise WrongArgument(f"adapters are {_FORMS}, not {_kind(given)}")
    if _is_pair(given) and _is_source(given[0]):
        raise WrongArgument(
            f"an adapter set is a path or what lyc_fx.load returns, not {_kind(given[1])}: put a pair into a list"
        )
    return [(one(each[0]), each[1]) if _is_pair(each) else (one(each), 1.0) for each in given]


def one(source: Source) -> AdapterSet:
    """Return the adapter set itself, or load a file. Raises as `chosen`."""
    given: Any = source
    if isinstance(given, AdapterSet):
        return given
    if not _is_source(given):
        raise WrongArgument(f"an adapter set is a path or what lyc_fx.load returns, not {_kind(given)}")
    return load(given)


def _is_source(given: Any) -> bool:
    tensors = isinstance(given, Mapping) and any(isinstance(value, Tensor) for value in given.values())
    return tensors or isinstance(given, (AdapterSet, str, os.PathLike))


def _is_pair(given: Any) -> bool:
    return isinstance(given, tuple) and len(given) == 2 and not _is_source(given[1])


def _kind(given: Any) -> str:
    kind = type(given).__name__
    if isinstance(given, nn.Module):
        return f"a model ({kind}); the model comes first"
    return f"{kind} ({given!r})" if isinstance(given, (int, float)) else kind
