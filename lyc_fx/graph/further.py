"""Passes from outside: those that a caller hands over, and those that he asks for by name."""

from collections.abc import Iterable
from typing import Any

from torch.fx.passes.infra.pass_base import PassBase

from lyc_fx.errors import WrongArgument
from lyc_fx.extensions import Table, named

TABLE: Table[PassBase] = Table("lyc_fx.passes", PassBase, (), named)
"""What `lyc_fx.register` and entry points give; no pass of it runs unless it is asked for"""


def further(given: Any) -> tuple[PassBase, ...]:
    """The passes of a list of passes and names. Raises WrongArgument for what is no such list."""
    if isinstance(given, (PassBase, str)) or not isinstance(given, Iterable):
        raise WrongArgument(f"passes is a list of passes, not {type(given).__name__}")
    return tuple(_by_name(each) if isinstance(each, str) else _sound(each) for each in given)


def _sound(each: Any) -> PassBase:
    if not isinstance(each, PassBase):
        what = f"the class {each.__name__}: make one" if isinstance(each, type) else type(each).__name__
        raise WrongArgument(f"a pass is an instance of torch.fx.passes.infra.pass_base.PassBase, not {what}")
    return each


def _by_name(name: str) -> PassBase:
    known: dict[str, PassBase] = {each.name: each for each in TABLE.all()}  # type: ignore[attr-defined]  # `named` saw it
    if name not in known:
        others = f"there are {', '.join(sorted(known))}" if known else "none is installed or registered"
        raise WrongArgument(f"there is no pass {name!r}: {others}")
    return known[name]
