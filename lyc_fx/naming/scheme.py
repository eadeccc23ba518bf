"""`Scheme`: the two names of each module of an architecture, as a table of rules that work in both directions."""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import final

from lyc_fx.naming.piece import Pieces, Shapes, concatenated, halves_swapped, parts, whole

LEAVES = ("weight", "bias")
_NUMBER = re.compile(r"(?:(?<=\.)|^)\d+(?=\.|$)")


class Dialect(Enum):
    """Where a name comes from."""

    own = "own"
    """The model at hand"""
    original = "original"
    """The original publication of the architecture; used by kohya and ComfyUI, except by kohya for SD 1 and 2"""
    diffusers = "diffusers"
    """diffusers or transformers"""
    spelling = "spelling"
    """Some adapter files; such names are read, but never written"""


@final
@dataclass(frozen=True)
class Rule:
    """A module's original name and its name in diffusers. `{}` is a number, the same on both sides.

    If diffusers has several modules for it, the original's rows are theirs stacked in this order; an empty name stands
    for rows without a module.
    """

    original: str
    diffusers: tuple[str, ...]
    continuous: bool = False
    """For an adaLN with only shift and scale (two values per channel): diffusers has the two in the other order"""
    inner: tuple[int, ...] = ()
    """The rows of all parts but the last, in units of the module's inputs (`linear1` of Flux); empty: all are equal"""
    dialect: Dialect = Dialect.diffusers
    """The dialect of the names in `diffusers`"""
    readers: tuple[str, ...] = ()
    """Modules beside the original; the one that the model has tells, by its number of inputs, the rows of the first
    part, and the other parts are equal. (Attention's output layer shows the rows of queries; keys and values may have
    fewer.)"""

    def sizes(self, shape: Sequence[int], columns: int | None, read: int | None = None) -> list[int] | None:
        """Return the number of rows of each part of the original's parameter, or None if it cannot be split so.

        `shape` is that of the parameter, `columns` the module's number of inputs, and `read` that of the module in
        `readers`, if there is one.
        """
        count, rows = len(self.diffusers), shape[0]
        if self.inner:
            first = [] if columns is None else [unit * columns for unit in self.inner]
            return None if not first or sum(first) >= rows else [*first, rows - sum(first)]
        if read is not None and count > 1:
            rest, over = divmod(rows - read, count - 1)
            return None if rest <= 0 or over else [read] + [rest] * (count - 1)
        return None if rows % count else [rows // count] * count


def rule(
    original: str,
    *diffusers: str,
    continuous: bool = False,
    inner: tuple[int, ...] = (),
    dialect: Dialect = Dialect.diffusers,
    readers: tuple[str, ...] = (),
) -> Rule:
    """Make a `Rule`, with the names in diffusers as separate arguments."""
    return Rule(original, diffusers, continuous, inner, dialect, readers)


@final
@dataclass(frozen=True)
class Scheme:
    """The rules of one architecture, or of one kind of module in any place (`anywhere`)."""

    rules: tuple[Rule, ...]
    marks: tuple[tuple[str, ...], ...] = ()
    """Sets of modules that identify the architecture: a model must have all modules of one of them"""
    kind: str = ""
    """diffusers' name for a component of this architecture"""
    anywhere: bool = False
    """Whether rules are for the ends of module names, instead of whole names"""
    bare: tuple[tuple[str, str], ...] = ()
    """Parameters that are not the weight or bias of a module: original name, and name in diffusers"""

    @cached_property
    def _by_original(self) -> dict[str, list[Rule]]:
        found = defaultdict(list)
        for each in self.rules:
            found[_wild(each.original)].append(each)
        return found

    @cached_property
    def _by_first(self) -> dict[str, list[Rule]]:
        found = defaultdict(list)
        for each in self.rules:
            found[_wild(each.diffusers[0])].append(each)
        return found

    @cached_property
    def _deepest(self) -> int:
        """The largest number of segments in a rule."""
        return max(name.count(".") for each in self.rules for name in (each.original, *each.diffusers)) + 1

    def aliases(self, shapes: Shapes) -> Iterator[tuple[Dialect, str, Pieces]]:
        """Yield further names of parameters, `<module>.weight` or `<module>.bias`, with what they mean.

        Yields none if the parameters in `shapes` are not of this architecture.
        """
        if not self._known(shapes):
            return
        for parameter in shapes:
            yield from self._bare(parameter)
            module, _, leaf = parameter.rpartition(".")
            if leaf in LEAVES and module:
                columns = _columns(shapes, module)
                for each, head, numbers in self._matches(module, self._by_original, lambda r: r.original):
                    yield from _split(each, head, numbers, parameter, leaf, shapes, columns)
                for each, head, numbers in self._matches(module, self._by_first, lambda r: r.diffusers[0]):
                    yield from _fused(each, head, numbers, leaf, shapes, columns)

    def _bare(self, parameter: str) -> Iterator[tuple[Dialect, str, Pieces]]:
        for original, diffusers in self.bare:
            for dialect, own, other in (
                (Dialect.diffusers, original, diffusers),
                (Dialect.original, diffusers, original),
            ):
                numbers = _numbers(own, parameter) if own.count(".") == parameter.count(".") else None
                if numbers is not None:
                    yield dialect, other.format(*numbers), whole(parameter)

    def _known(self, shapes: Shapes) -> bool:
        modules = {_wild(name.rpartition(".")[0]) for name in shapes} if self.marks else set()
        return not self.marks or any(modules.issuperset(marks) for marks in self.marks)

    def _matches(self, module, table, side) -> Iterator[tuple[Rule, str, list[str]]]:  # type: ignore[no-untyped-def]
        """Yield the rules that match a module on one side, with the prefix before the match, and the numbers in it."""
        parts = module.rsplit(".", self._deepest) if self.anywhere else [module]
        for tail in (".".join(parts[first:]) for first in range(len(parts))):
            for each in table.get(_wild(tail), ()):
                numbers = _numbers(side(each), tail)
                if numbers is not None:
                    yield each, module[: len(module) - len(tail)], numbers


def _split(
    each: Rule, head: str, numbers: list[str], parameter: str, leaf: str, shapes: Shapes, columns: int | None
) -> Iterator[tuple[Dialect, str, Pieces]]:
    names = [name and f"{head}{name.format(*numbers)}.{leaf}" for name in each.diffusers]
    if len(names) == 1:
        yield each.dialect, names[0], _in_order(each, parameter, shapes, columns)
        return
    beside = parameter.rpartition(".")[0].rpartition(".")[0]
    read = next((n for name in each.readers if (n := _columns(shapes, f"{beside}.{name}")) is not None), None)
    sizes = each.sizes(shapes[parameter], columns, read)
    for name, pieces in zip(names, parts(parameter, sizes), strict=True) if sizes else ():
        if name:
            yield each.dialect, name, pieces


def _fused(
    each: Rule, head: str, numbers: list[str], leaf: str, shapes: Shapes, columns: int | None
) -> Iterator[tuple[Dialect, str, Pieces]]:
    members = [f"{head}{name.format(*numbers)}.{leaf}" for name in each.diffusers]
    if all(member in shapes for member in members):
        name = f"{head}{each.original.format(*numbers)}.{leaf}"
        one = len(members) == 1
        dialect = Dialect.original if each.dialect is Dialect.diffusers else each.dialect
        pieces = _in_order(each, members[0], shapes, columns) if one else concatenated(members, shapes)
        yield dialect, name, pieces


def _in_order(each: Rule, parameter: str, shapes: Shapes, columns: int | None) -> Pieces:
    """Return the pieces of a parameter that has one module on both sides: whole, or its halves swapped."""
    rows = shapes[parameter][0] if shapes[parameter] else 0
    swapped = each.continuous and columns is not None and rows == 2 * columns
    return halves_swapped(parameter, rows) if swapped else whole(parameter)


def _columns(shapes: Shapes, module: str) -> int | None:
    """Return how many inputs a module has, by the shape of its weight; None if that is unknown."""
    shape = shapes.get(f"{module}.weight", ())
    return shape[1] if len(shape) > 1 else None


def _wild(path: str) -> str:
    return _NUMBER.sub("{}", path)


def _numbers(template: str, path: str) -> list[str] | None:
    """Return the numbers in a path at the places of `{}` in a template; None if other segments differ."""
    found = []
    for wanted, given in zip(template.split("."), path.split("."), strict=True):
        if wanted == "{}":
            found.append(given)
        elif wanted != given:
            return None
    return found
