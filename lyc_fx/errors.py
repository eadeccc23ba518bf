"""The errors that lyc-fx raises on purpose. All of them derive from `LycFxError`."""

from collections.abc import Sequence


class LycFxError(Exception):
    """Base of every error that this library raises on purpose; its text is meant for the user."""


class BadFile(LycFxError):
    """A file cannot be read as what it should be, or must not be written where it was asked."""


class BadAdapter(LycFxError):
    """An adapter is incomplete, non-finite, does not fit its weight, or finds no weight at all."""


class BadModules(BadAdapter):
    """Some modules of a file cannot be used; `sound` is the adapter set of the others."""

    def __init__(self, message: str, sound: object) -> None:
        super().__init__(message)
        self.sound = sound


class NotApplicable(BadAdapter):
    """Adapters do not fit a model; `faults` is the message without its advice."""

    def __init__(self, faults: str, advice: str) -> None:
        super().__init__(f"{faults}\n{advice}" if advice else faults)
        self.faults = faults


class CaptureError(LycFxError):
    """A model cannot be brought into the form of a captured program."""


class InvalidGraph(LycFxError):
    """A graph breaks what must hold before or after a pass."""


class WrongArgument(LycFxError, TypeError):
    """A function was given something of another kind than it takes."""


class Unsupported(LycFxError):
    """What was asked is well-formed, but lyc-fx does not do it."""


SHOWN = 20
"""How many faults a message lists"""


def listing(what: str, faults: Sequence[str]) -> str:
    """A message with a line for each fault; of many with the first ones, and how many more there are."""
    more = len(faults) - SHOWN
    return "\n".join([what, *faults[:SHOWN], *([f"  … and {more} more"] if more > 0 else [])])


def counted(count: int, noun: str) -> str:
    """`1 adapter`, `3 adapters`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
