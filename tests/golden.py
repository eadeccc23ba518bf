"""Comparing a printed graph with the text in a test."""

from textwrap import dedent


def expect(text: str, wanted: str) -> None:
    """Assert that a text equals one that is indented in the test; the difference is shown line by line."""
    assert text.strip().splitlines() == dedent(wanted).strip().splitlines()
