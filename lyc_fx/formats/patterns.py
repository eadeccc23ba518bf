"""Regular expressions out of an adapter's configuration, matched in bounded time.

Python's `re` tries one alternative after another, which takes years for `(a+)+b`. Here all alternatives are followed
at once, as a set of places in the pattern (Thompson's construction): the time is at most the size of the pattern
times that of the name. Only whether a whole name matches is asked, so that greed does not matter.
"""

import re
from dataclasses import dataclass
from typing import Self, final

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.syntax import Atom, Choice, Node, Repeat, Sequence, parsed
from lyc_fx.formats.texts import shown

_LARGEST = 5000
"""Steps of a pattern, after `{m,n}` is written out"""
_LONGEST = 1_000_000
"""Steps of a pattern, times the letters of a name"""
_PLAIN = re.compile(r"[\w.\-]*")


def matches(pattern: str, text: str) -> bool:
    """`re.fullmatch(pattern, text) is not None`.

    Raises BadAdapter for what is no pattern, for one too large, and for one that looks around or back.
    """
    if _PLAIN.fullmatch(pattern):  # nothing to choose from: the usual case, a name
        return len(pattern) == len(text) and all(p in (".", c) for p, c in zip(pattern, text, strict=True))
    return _Program.of(pattern).run(text)


def means(pattern: str, module: str) -> bool:
    """Whether PEFT takes a pattern to mean this module: `re.match(r"(.*\\.)?(<pattern>)$", module)`."""
    if _PLAIN.fullmatch(pattern):
        before, tail = module[: -len(pattern) or len(module)], module[len(module) - len(pattern) :]
        return len(pattern) <= len(module) and (not before or before[-1] == ".") and matches(pattern, tail)
    parsed(pattern)  # by itself, so that no bracket of it closes ours
    return matches(rf"(.*\.)?({pattern})", module)


@final
@dataclass(frozen=True)
class _Program:
    """A pattern as steps: a test of one place in the text, or the steps that may come next."""

    steps: tuple[re.Pattern[str] | tuple[int, ...], ...]
    """The step after a test is the one behind it; the step behind the last is a match"""
    pattern: str

    @classmethod
    def of(cls, pattern: str) -> Self:
        steps: list[re.Pattern[str] | tuple[int, ...]] = []
        _emit(parsed(pattern), steps, [0], pattern)
        return cls(tuple(steps), pattern)

    def run(self, text: str) -> bool:
        if len(self.steps) * len(text) > _LONGEST:
            raise BadAdapter(f"the pattern {shown(self.pattern)} is too large for the name {shown(text)}")
        places = self._closed({0}, text, 0)
        for position in range(len(text)):
            after = {p + 1 for p in places if p < len(self.steps) and self._eats(p, text, position)}
            if not after:
                return False
            places = self._closed(after, text, position + 1)
        return len(self.steps) in places

    def _eats(self, place: int, text: str, position: int) -> bool:
        step = self.steps[place]
        return isinstance(step, re.Pattern) and (m := step.match(text, position)) is not None and m.end() > position

    def _closed(self, places: set[int], text: str, position: int) -> set[int]:
        """With all that can be reached without a letter, by a choice or past an anchor."""
        found, waiting = set(places), list(places)
        while waiting:
            place = waiting.pop()
            if place == len(self.steps):
                continue
            step = self.steps[place]
            if isinstance(step, tuple):
                near = set(step) - found
            else:
                match = step.match(text, position)
                near = {place + 1} - found if match is not None and match.end() == position else set()
            found |= near
            waiting += near
        return found


def _emit(node: Node, steps: list[re.Pattern[str] | tuple[int, ...]], spent: list[int], pattern: str) -> None:
    spent[0] += 1
    if spent[0] > _LARGEST:
        raise BadAdapter(f"the pattern {shown(pattern)} is too large")
    match node:
        case Atom():
            steps.append(node.test)
        case Sequence():
            for part in node.parts:
                _emit(part, steps, spent, pattern)
        case Choice():
            exits = []
            for part in node.parts:
                fork = len(steps)
                steps.append(())
                _emit(part, steps, spent, pattern)
                exits.append(len(steps))
                steps.append(())
                steps[fork] = (fork + 1, len(steps))
            steps[fork] = (fork + 1,)
            for place in exits:
                steps[place] = (len(steps),)
        case Repeat():
            for _ in range(node.least):
                _emit(node.part, steps, spent, pattern)
            if node.most is None:
                fork = len(steps)
                steps.append(())
                _emit(node.part, steps, spent, pattern)
                steps.append((fork,))
                steps[fork] = (fork + 1, len(steps))
            else:
                forks = []
                for _ in range(node.most - node.least):
                    forks.append(len(steps))
                    steps.append(())
                    _emit(node.part, steps, spent, pattern)
                for place in forks:
                    steps[place] = (place + 1, len(steps))
