"""Patterns of a configuration match what Python's `re` matches, and never take long."""

import re
import time

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.patterns import matches, means
from lyc_fx.formats.reading.texts import shown

ATOMS = (
    "a", "b", "c", "1", "-", "_", ".", r"\.", "[ab]", "[^a]", "[]a]", "[{1}]", r"\d", r"\w", r"\x61", r"\141", "\n",
    "^", "$", r"\b", r"\A", r"\Z", "(?=a)", "(?!a)", "(?<=a)", "(?<!b)", r"\1", "(?P<n>a)", "(?P=n)", "(?>a|ab)",
    "(?i:A)", "(?s:.)", "(?m:^a$)", "(?x: a b)", "(?#x)", "{", "}", "{x}", "{}", "{,}", "[[a]", "[a&&b]", "[a||b]",
    "{e}", "{e<=1}", "[[:alpha:]]", "[a[:alpha:]]", "[^[:digit:]]", "[:a]",
)  # fmt: skip
REPEATS = (
    "*", "+", "?", "{2}", "{1,2}", "{,2}", "{1,}", "{0}", "{,}", "*?", "+?", "??", "{1,2}?", "*+", "++", "?+", "{1,2}+",
    "{i}", "{1i+1d<2}",
)  # fmt: skip
REPEAT = st.sampled_from(REPEATS)
PATTERN = st.recursive(
    st.sampled_from(ATOMS),
    lambda part: st.one_of(
        st.tuples(part, part).map("".join),
        st.tuples(part, part).map(lambda two: f"({two[0]}|{two[1]})"),
        part.map(lambda one: f"{one}|"),
        st.tuples(part, REPEAT).map(lambda one: f"({one[0]}){one[1]}"),
        st.tuples(part, REPEAT).map(lambda one: f"(?:{one[0]}){one[1]}"),
        st.tuples(st.sampled_from("abc."), REPEAT).map("".join),
    ),
    max_leaves=6,
)
NAME = st.one_of(st.text("ab.c1_-{\n:", max_size=8), st.text("ab", max_size=3))


@settings(max_examples=1500, deadline=None, derandomize=True)
@given(PATTERN, NAME)
def test_as_python_matches(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
        wanted = (
            re.fullmatch(pattern, name) is not None,
            re.match(rf"(.*\.)?({pattern})$", name) is not None,
        )
    except re.error:
        event("not valid")
        with pytest.raises(BadAdapter):
            means(pattern, name)
        return
    assert (matches(pattern, name), means(pattern, name)) == wanted
    event(f"matches: {wanted[0]}")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text("ab(){}[]|*+?.^$\\:<=!P1,-&~", max_size=8), NAME)
def test_any_text_as_a_pattern(text: str, name: str) -> None:
    assume(r"\B" not in text)  # of an empty text, Python 3.14 says another thing than those before
    try:
        wanted = re.fullmatch(text, name) is not None
    except re.error:
        with pytest.raises(BadAdapter):
            matches(text, name)
        return
    assert matches(text, name) == wanted


@pytest.mark.parametrize(
    "text", ["(a+)+b", "(a|a)*b", "(.*)*b", "(a?){40}a{40}b", ".*" * 12 + "b", "((a*)*)*b", "(a|a?)+b"]
)
def test_what_takes_others_years(text: str) -> None:
    started = time.perf_counter()
    assert not matches(text, "a" * 80)
    assert matches(text, "a" * 80 + "b")
    assert time.perf_counter() - started < 1


SLOW = {
    "(a|a)*[bc]": "a" * 80, "(a|b|ab)*?[cd]": "ab" * 40, "(?=(a|a)*[bc]).*": "a" * 80, r"((a|a)*)\1[bc]": "a" * 80,
    "(a{1,9}){1,9}b": "a" * 85 + "b",
}  # fmt: skip


@pytest.mark.parametrize("text", SLOW)
def test_what_takes_years_is_refused_once_for_all_modules(text: str) -> None:
    started = time.thread_time()
    for number in range(1000):
        with pytest.raises(BadAdapter, match=re.escape(f"the pattern {shown(text)} takes more than 1 s")):
            means(text, f"{number}.{SLOW[text]}")
    assert time.thread_time() - started < 3


def test_what_is_slow_for_each_of_many_modules_is_refused() -> None:
    """No match takes a second, but all of them together would."""
    text, started = "(a|a)*(?:b|b)*[de]", time.thread_time()
    with pytest.raises(BadAdapter, match="takes more than 1 s"):
        for number in range(10_000):
            matches(text, "a" * 17 + f"{number}")
    assert time.thread_time() - started < 3


def test_any_number_of_quick_matches_is_free() -> None:
    started = time.thread_time()
    while time.thread_time() - started < 1.5:
        assert all(means("blocks.(1|2).fc", f"blocks.{i}.fc") == (i in (1, 2)) for i in range(1000))


@pytest.mark.parametrize(
    "text",
    [
        "(",
        "[",
        "*a",
        "a{99999999999}",
        "(" * 2000,
        "x*" * 2000,
        "((a{99}){99}){99}",
        "a)(b",
        "(" * 22 + "a" + ")+" * 22,
    ],
)
def test_what_is_no_pattern_or_too_large(text: str) -> None:
    with pytest.raises(BadAdapter, match=r"pattern|no regular expression"):
        means(text, "a")


@pytest.mark.parametrize(
    ("text", "wanted"), [(r"(?=a).", True), (r"(?!a).", False), (r"(a)\1", False), ("(?i)A", True), ("a*+", True)]
)
def test_what_looks_around_or_back(text: str, wanted: bool) -> None:
    assert matches(text, "a") == wanted


def test_flags_of_a_pattern_for_ends_of_names_are_refused_as_by_peft() -> None:
    with pytest.raises(BadAdapter, match="not at the start"):
        means("(?i)fc", "block.FC")


def test_a_large_pattern_for_a_long_name() -> None:
    assert not matches("(a|b)*c{900}", "a" * 2000)
    assert matches("(a|b)*c{900}", "a" * 2000 + "c" * 900)
