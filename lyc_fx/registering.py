"""`register`: algorithms, formats, names, layer kinds and passes from outside the package."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

from lyc_fx.algorithms import TABLE as FAMILIES
from lyc_fx.errors import WrongArgument
from lyc_fx.extensions import Table, shown
from lyc_fx.formats import TABLE as FORMATS
from lyc_fx.graph.further import TABLE as PASSES
from lyc_fx.graph.layers.table import TABLE as LAYERS
from lyc_fx.naming.names import TABLE as NAMES

T = TypeVar("T")

TABLES: dict[str, Table[Any]] = {
    "an algorithm (a subclass of lyc_fx.adapters.adapter.Adapter)": FAMILIES,
    "a format (lyc_fx.formats.Format)": FORMATS,
    "a layer kind (lyc_fx.graph.layers.LayerKind)": LAYERS,
    "a pass (torch.fx.passes.infra.pass_base.PassBase)": PASSES,
    "names of an architecture (lyc_fx.naming.scheme.Scheme)": NAMES,
}
"""By what they hold"""


def register(thing: T) -> T:
    """Make something from outside part of lyc-fx, in this process: `@lyc_fx.register` above a class, or a call.

    It takes an algorithm, a format, a layer kind, a pass (found by its `name` in `lower(passes=[...])`) or the names of
    an architecture, known by their types, and returns it. The same thing again changes nothing, and the same class
    defined anew takes the place of the old one. What is installed need not be registered: entry points of the groups
    `lyc_fx.algorithms`, `lyc_fx.formats`, `lyc_fx.layers`, `lyc_fx.passes` and `lyc_fx.architectures` are found when
    they are first of use. See docs/extending.md.

    Raises WrongArgument for anything else, for what is abstract or contradicts itself, and for names, keys or
    operators that something else has.
    """
    for table in TABLES.values():
        if table.takes(thing):
            table.add(thing)
            return thing
    raise WrongArgument(f"{shown(thing)} is nothing that can be registered: {', '.join(TABLES)}")


@contextmanager
def temporarily() -> Iterator[None]:
    """Forget, at the end, what was registered in between."""
    with ExitStack() as stack:
        for table in TABLES.values():
            stack.enter_context(table.restored())
        yield
