"""Regular expressions out of an adapter's configuration, matched in bounded time.

Python's `re` tries one alternative after another without a limit, which takes years for `(a|a)*b`. It decides which
patterns are valid; the library `regex`, which can be given a time limit, does the matching.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from time import thread_time
from typing import Any, final

import regex

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.texts import shown

_SECONDS = 1.0
"""How long one pattern may take with all names together"""
_QUICK = 0.001
"""Seconds of a match that do not count, so that a pattern may meet any number of names"""
_LETTERS = 2000
_WRITTEN_OUT = 200_000
"""Letters of a pattern after repeats are written out, as `regex` does when it compiles, without a limit"""
_COUNT = re.compile(r"(\))?(?:\{(\d*)(?:,(\d*))?\}|\+)")
"""A repeat with a count, perhaps of a group; `x+` is written out as `xx*`"""
_PLAIN = re.compile(r"[\w.\-]*")
_ONLY_IN_REGEX = re.compile(
    r"""(?P<same> \\N\{[^}]*\} | \\. | \{ (?: \d+ (?:,\d*)? | ,\d* ) \} )   # means the same in both
      | (?P<brace> \{ )                                                     # as in `a{e}`, a fuzzy match
      | \[ (?P<posix> : )                                                   # as in `[[:alpha:]]` """,
    re.VERBOSE | re.DOTALL,
)


def matches(pattern: str, text: str) -> bool:
    """Return `re.fullmatch(pattern, text) is not None`.

    Raises BadAdapter for a pattern that is not valid, too large or too slow.
    """
    if _PLAIN.fullmatch(pattern) and "\n" not in text:  # the usual case, a name
        return len(pattern) == len(text) and all(p in (".", c) for p, c in zip(pattern, text, strict=True))
    return _whole(pattern).matches(text)


def means(pattern: str, module: str) -> bool:
    """Return whether PEFT takes a pattern to mean this module: `re.match(r"(.*\\.)?(<pattern>)$", module)`.

    Raises BadAdapter for a pattern that is not valid by itself, too large or too slow.
    """
    if _PLAIN.fullmatch(pattern) and "\n" not in module:
        before, tail = module[: -len(pattern) or len(module)], module[len(module) - len(pattern) :]
        return len(pattern) <= len(module) and (not before or before[-1] == ".") and matches(pattern, tail)
    return _tail(pattern).matches(module)


@final
@dataclass
class _Limited:
    """A compiled pattern, and the time that it may still take."""

    pattern: str
    match: Callable[..., object]
    left: float = _SECONDS

    def matches(self, text: str) -> bool:
        started = thread_time()
        try:
            if self.left > 0:
                return self.match(text, timeout=self.left) is not None
        except (TimeoutError, MemoryError):
            self.left = 0.0
        finally:
            spent = thread_time() - started
            self.left -= spent if spent > _QUICK else 0.0
        raise BadAdapter(f"the pattern {shown(self.pattern)} takes more than {_SECONDS:g} s to match")


@lru_cache(maxsize=1000)
def _whole(pattern: str) -> _Limited:
    return _Limited(pattern, _compiled(pattern).fullmatch)


@lru_cache(maxsize=1000)
def _tail(pattern: str) -> _Limited:
    _check(pattern, pattern)  # by itself, so that no bracket of it closes ours
    within = rf"(.*\.)?({pattern})$"
    _check(within, pattern)
    return _Limited(pattern, _compiled(within).match)


def _check(pattern: str, given: str) -> None:
    if len(given) > _LETTERS:
        raise BadAdapter(f"a pattern of {len(given)} letters is too large: {shown(given)}")
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadAdapter(f"{shown(given)} is no regular expression: {error}") from error
    if _written_out(pattern) > _WRITTEN_OUT:
        raise BadAdapter(f"the pattern {shown(given)} is too large")


def _written_out(pattern: str) -> int:
    """No fewer letters than `regex` makes of it: groups that are repeated might all be nested."""
    found = [(group, 1 + max(int(count or 1) for count in counts)) for group, *counts in _COUNT.findall(pattern)]
    letters = len(pattern) + sum(count for group, count in found if not group)
    return letters * prod(count for group, count in found if group)


def _compiled(pattern: str) -> Any:
    _check(pattern, pattern)
    try:
        return regex.compile(_ONLY_IN_REGEX.sub(_literal, pattern), regex.VERSION0, cache_pattern=False)
    except (regex.error, RecursionError, MemoryError) as error:
        raise BadAdapter(f"lyc-fx cannot match the pattern {shown(pattern)}: {error}") from error


def _literal(found: re.Match[str]) -> str:
    return found[0] if found["same"] else r"\{" if found["brace"] else r"[\:"
