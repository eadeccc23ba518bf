"""The syntax of regular expressions, as far as a choice, a repeat and a group go. Python's `re` tests the letters."""

import re
from dataclasses import dataclass
from typing import final

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.texts import shown

_LONGEST = 2000
_DEEPEST = 40
_TOKEN = re.compile(
    r"""(?P<refused> \(\?(?!:) | \\[0-9xuUN] )   # looking around or back, flags, letters by number
      | (?P<open> \(\?: | \( ) | (?P<close> \) ) | (?P<or> \| )
      | (?P<repeat> [*+?] | \{ (?:\d+(?:,\d*)?|,\d*) \} ) (?P<how> [?+]? )
      | (?P<letter> \\. | \[ \^? \]? (?:\\.|[^\]\\])* \] | . )""",
    re.VERBOSE | re.DOTALL,
)


@final
@dataclass(frozen=True)
class Atom:
    """One letter, a class of letters, or an anchor between them."""

    test: re.Pattern[str]


@final
@dataclass(frozen=True)
class Sequence:
    """One part after another."""

    parts: tuple["Node", ...]


@final
@dataclass(frozen=True)
class Choice:
    """One of the parts."""

    parts: tuple["Node", ...]


@final
@dataclass(frozen=True)
class Repeat:
    """The part, so many times."""

    part: "Node"
    least: int
    most: int | None


Node = Atom | Sequence | Choice | Repeat


def parsed(pattern: str) -> Node:
    """Raises BadAdapter for what `re` does not take, what is too long or too deep, and what looks around or back."""
    try:
        if len(pattern) > _LONGEST:
            raise BadAdapter(f"a pattern of {len(pattern)} letters is too large: {shown(pattern)}")
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadAdapter(f"{shown(pattern)} is no regular expression: {error}") from error
    open_: list[list[list[Node]]] = [[[]]]  # groups, in each the alternatives, in each the parts
    for token in _TOKEN.finditer(pattern):
        parts = open_[-1][-1]
        if token["refused"] or token["how"] == "+":
            raise BadAdapter(f"the pattern {shown(pattern)} has {token[0]}, which lyc-fx does not match")
        if token["open"]:
            open_.append([[]])
            if len(open_) > _DEEPEST:
                raise BadAdapter(f"the pattern {shown(pattern)} is too deep")
        elif token["close"]:
            group = _group(open_.pop())
            open_[-1][-1].append(group)
        elif token["or"]:
            open_[-1].append([])
        elif token["repeat"]:
            parts.append(Repeat(parts.pop(), *_bounds(token["repeat"])))
        else:
            parts.append(Atom(re.compile(token["letter"])))
    return _group(open_[0])


def _group(alternatives: list[list[Node]]) -> Node:
    return Choice(tuple(Sequence(tuple(parts)) for parts in alternatives))


def _bounds(repeat: str) -> tuple[int, int | None]:
    if repeat in "*+?":
        return int(repeat == "+"), 1 if repeat == "?" else None
    least, comma, most = repeat[1:-1].partition(",")
    return int(least or 0), int(most) if most else None if comma else int(least)
