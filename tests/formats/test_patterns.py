"""Patterns of a configuration match what Python's `re` matches, and never take long."""

import random
import re
import time

import pytest

from lyc_fx.errors import BadAdapter, LycFxError
from lyc_fx.formats.patterns import matches, means

ATOMS = ("a", "b", ".", r"\.", "[ab]", "[^a]", "[]a]", r"\d", r"\w", "^", "$", r"\b", "c", "1", "-", "_", "{", "{x}")
REPEATS = ("*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "*?", "+?", "??", "{1,2}?")


def pattern(rng: random.Random, depth: int = 0) -> str:
    match rng.randrange(10 if depth < 4 else 3):
        case 0 | 1 | 2:
            return rng.choice(ATOMS)
        case 3 | 4:
            return pattern(rng, depth + 1) + pattern(rng, depth + 1)
        case 5:
            return f"({pattern(rng, depth + 1)}|{pattern(rng, depth + 1)})"
        case 6:
            return f"{pattern(rng, depth + 1)}|"
        case 7:
            return f"(?:{pattern(rng, depth + 1)}){rng.choice(REPEATS)}"
    return f"{rng.choice('abc.')}{rng.choice(REPEATS)}"


@pytest.mark.parametrize("seed", range(4))
def test_as_python_matches(seed: int) -> None:
    rng, matched, refused = random.Random(seed), 0, 0
    for _ in range(4000):
        text, name = pattern(rng), "".join(rng.choice("ab.c1_-{") for _ in range(rng.randrange(8)))
        try:
            wanted = (re.fullmatch(text, name) is not None, re.match(rf"(.*\.)?({text})$", name) is not None)
        except re.error:
            refused += 1
            with pytest.raises(LycFxError):
                matches(text, name)
            continue
        assert (matches(text, name), means(text, name)) == wanted, (text, name)
        matched += wanted[0]
    assert matched > 200
    assert refused < 400


@pytest.mark.parametrize(
    "text",
    ["(a+)+b", "(a|a)*b", "(.*)*b", "(a?){40}a{40}b", ".*" * 12 + "b", "((a*)*)*b", "(a|a?)+b", "(a{1,9}){1,9}b"],
)
def test_what_takes_others_years(text: str) -> None:
    started = time.perf_counter()
    assert not matches(text, "a" * 80)
    assert matches(text, "a" * 80 + "b") or "{1,9}" in text
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "text", ["(", "[", "*a", "a{99999999999}", "(" * 2000, "x*" * 2000, "((a{99}){99}){99}", "a)(b"]
)
def test_what_is_no_pattern_or_too_large(text: str) -> None:
    with pytest.raises(BadAdapter):
        means(text, "a")


@pytest.mark.parametrize("text", [r"(?=a)", r"(?!a).", r"(a)\1", "(?i)a", "a*+", r"\x41"])
def test_what_looks_around(text: str) -> None:
    with pytest.raises(BadAdapter, match="does not match"):
        matches(text, "a")


def test_a_pattern_that_is_too_large_for_a_name() -> None:
    with pytest.raises(BadAdapter, match="too large for the name"):
        matches("(a|b)*c{900}", "a" * 2000)
