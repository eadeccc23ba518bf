"""Warnings on the command line: one line each, and one for all that say the same of several modules."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def said_once() -> Iterator[None]:
    """Print the warnings of the block at its end, also where it ends by an error."""
    heard: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", UserWarning)
            yield
    finally:
        for line in _lines([str(each.message) for each in heard if issubclass(each.category, UserWarning)]):
            typer.echo(f"warning: {line}", err=True)


def _lines(texts: list[str]) -> Iterator[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for text in dict.fromkeys(texts):
        subject, _, said = text.partition(": ")
        alike[said].append(subject)
    for said, subjects in alike.items():
        more = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        yield f"{subjects[0]}{more}: {said}" if said else subjects[0]
