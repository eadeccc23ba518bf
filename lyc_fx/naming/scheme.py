"""`Scheme`: what else the modules of an architecture are called, as a table of rules that hold both ways."""

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
    """Who named the modules."""

    own = "own"
    """The model at hand"""
    original = "original"
    """The first publication of the architecture; kohya and ComfyUI use it for all but SD 1 and 2"""
    diffusers = "diffusers"
    """diffusers or transformers"""
    spelling = "spelling"
    """Some files; it is read, and never written"""


@final
@dataclass(frozen=True)
class Rule:
    """One module of the original, and what stands for it in diffusers. `{}` is a number, the same on both sides.

    With several modules on the right, the original's rows are theirs, one after another; one without a name is a rest.
    """

    original: str
    diffusers: tuple[str, ...]
    continuous: bool = False
    """An adaLN that gives shift and scale only (two values per channel) has them the other way round in diffusers"""
    inner: tuple[int, ...] = ()
    """Rows of all parts but the last in units of the module's inputs (`linear1` of Flux); else all have as many"""
    dialect: Dialect = Dialect.diffusers
    """Whose names those on the right are"""
    readers: tuple[str, ...] = ()
    """Modules beside the original, of which the one that is there has as many inputs as the first part has rows; the
    other parts are equal. (Attention's output says how many rows queries have, where keys and values have fewer.)"""

    def sizes(self, shape: Sequence[int], columns: int | None, read: int | None = None) -> list[int] | None:
        """Rows of each part of the original's parameter, of a module with `columns` inputs, beside one of the `readers`
        that has `read`; None where it does not split so."""
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
    """A row of a scheme's table."""
    return Rule(original, diffusers, continuous, inner, dialect, readers)


@final
@dataclass(frozen=True)
class Scheme:
    """The rules of one architecture, or of one kind of module wherever it stands (`anywhere`)."""

    rules: tuple[Rule, ...]
    marks: tuple[tuple[str, ...], ...] = ()
    """Sets of modules by which the architecture is known: one of them must be there as a whole"""
    kind: str = ""
    """What diffusers calls the component that has it"""
    anywhere: bool = False
    """Rules are tails of module names, not whole names"""
    bare: tuple[tuple[str, str], ...] = ()
    """Parameters that are no module's weight or bias: the original's name, and that of diffusers"""

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
        """The most dots in a rule."""
        return max(name.count(".") for each in self.rules for name in (each.original, *each.diffusers)) + 1

    def aliases(self, shapes: Shapes) -> Iterator[tuple[Dialect, str, Pieces]]:
        """Further names of parameters, `<module>.weight` or `<module>.bias`, and what they stand for."""
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
        """The rules whose side is this module; what stands before it; its numbers."""
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
        yield each.dialect, names[0], _turned(each, parameter, shapes, columns)
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
        pieces = _turned(each, members[0], shapes, columns) if one else concatenated(members, shapes)
        yield dialect, name, pieces


def _turned(each: Rule, parameter: str, shapes: Shapes, columns: int | None) -> Pieces:
    rows = shapes[parameter][0] if shapes[parameter] else 0
    swapped = each.continuous and columns is not None and rows == 2 * columns
    return halves_swapped(parameter, rows) if swapped else whole(parameter)


def _columns(shapes: Shapes, module: str) -> int | None:
    """How many inputs a module has, also where its bias is asked about."""
    shape = shapes.get(f"{module}.weight", ())
    return shape[1] if len(shape) > 1 else None


def _wild(path: str) -> str:
    return _NUMBER.sub("{}", path)


def _numbers(template: str, path: str) -> list[str] | None:
    """The numbers in the places of `{}`; None where other parts differ."""
    found = []
    for wanted, given in zip(template.split("."), path.split("."), strict=True):
        if wanted == "{}":
            found.append(given)
        elif wanted != given:
            return None
    return found
