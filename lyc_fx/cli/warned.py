"""Warnings on the command line: one line each, and only one for the same warning about several modules."""

import warnings
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import typer


@contextmanager
def collected_warnings() -> Iterator[None]:
    """Collect the warnings of a block, and print them at its end, even after an error."""
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
