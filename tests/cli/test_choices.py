"""Options that are one of a few words: the help and the errors list the words that the library knows."""

from typing import get_args

import pytest
import torch

from lyc_fx import choices
from lyc_fx.cli.arguments import DType
from lyc_fx.cli.demo.data import Name
from lyc_fx.naming import Target

OPTIONS = {
    ("fold", "--convention"): get_args(choices.Convention),
    ("fold", "--rounding"): get_args(choices.Rounding),
    ("fold", "--dtype"): get_args(DType),
    ("convert", "--to"): tuple(target.value for target in Target),
    ("demo", "--adapter"): get_args(Name),
}


@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_the_help_and_the_error_list_the_choices(command: str, option: str, lyc) -> None:
    words = OPTIONS[command, option]
    assert "|".join(words) in lyc(command, "--help").out.partition(f"{option} ")[2].split("--")[0]
    given = {"fold": ["a", "b", "-o", "c"], "convert": ["a", "-o", "c"], "demo": []}[command]
    said = lyc(command, *given, option, "other")
    assert said.code == 2
    assert f"Invalid value for '{option}'" in said.err
    assert f"'other' is not one of {', '.join(map(repr, words))}." in said.err


def test_the_choices_are_those_of_the_library() -> None:
    assert get_args(choices.Convention) == get_args(choices.Convention)
    assert all(isinstance(getattr(torch, name), torch.dtype) for name in get_args(DType))
