"""What comes from outside: entry points of installed distributions, and what `lyc_fx.register` was given.

Each kind of thing has one `Table`, in the file where lyc-fx's own things of that kind are listed. What a table holds
does not depend on what was imported or registered first: our own come first, then all others in the order of the names
of their modules and classes.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, entry_points
from inspect import isabstract
from threading import get_ident
from typing import Any, Generic, TypeVar, final

from lyc_fx.errors import WrongArgument

T = TypeVar("T")


class BrokenExtension(UserWarning):
    """An installed distribution offers something that lyc-fx cannot use. All else works."""


@final
class Table(Generic[T]):
    """The things of one kind. `group` is the group of entry points, `base` the type of the things.

    `check` raises WrongArgument for a thing that cannot stand beside the others, which it gets as well. The things are
    subclasses of `base` with `classes`; instances of anything, of which equal ones are the same, with `values`; else
    instances with a class of their own, and the class may be given for what it makes without arguments.
    """

    def __init__(
        self,
        group: str,
        base: type[Any],
        own: tuple[T, ...],
        check: Callable[[T, tuple[T, ...]], None],
        *,
        classes: bool = False,
        values: bool = False,
    ) -> None:
        self.group = group
        self._base, self._own, self._check, self._classes, self._values = base, own, check, classes, values
        self._others: dict[Hashable, T] = {}
        self._loaded = False
        self._loading: set[int] = set()

    def all(self) -> tuple[T, ...]:
        """Our own, those of entry points, which are loaded now if they were not, and those that were registered."""
        self._load()
        others = dict(self._others)
        return (*self._own, *(others[key] for key in sorted(others, key=repr)))

    def takes(self, thing: object) -> bool:
        """Whether this is a thing of this kind, sound or not."""
        if not isinstance(thing, type):
            return isinstance(thing, self._base) and not self._classes
        return self._base in thing.__mro__

    def add(self, thing: object) -> None:
        """Add a thing. It takes the place of an older version: what the same module defined under the same name.

        Raises WrongArgument.
        """
        if not self.takes(thing):
            raise WrongArgument(f"{shown(thing)} is no {self._base.__name__}")
        if isinstance(thing, type) and isabstract(thing):
            missing = ", ".join(sorted(getattr(thing, "__abstractmethods__", ())))
            raise WrongArgument(f"{shown(thing)} is abstract: it has no {missing}")
        made = self._made(thing)
        key = self._key(made)
        if key in map(self._key, self._own):
            return
        self._check(made, (*self._own, *(other for name, other in dict(self._others).items() if name != key)))
        self._others[key] = made

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Forget, at the end, what was registered in between."""
        self._load()
        before = dict(self._others)
        try:
            yield
        finally:
            self._others = before

    def _made(self, thing: Any) -> T:
        try:
            return thing() if isinstance(thing, type) and not self._classes else thing  # type: ignore[return-value]
        except TypeError as error:
            raise WrongArgument(f"{shown(thing)} cannot be made without arguments: {error}") from error

    def _key(self, thing: T) -> Hashable:
        """What stays the same when the code that defines a thing is run again."""
        kind = thing if isinstance(thing, type) else type(thing)
        return thing if self._values else (kind.__module__, kind.__qualname__)

    def _load(self) -> None:
        """Add what entry points name; BrokenExtension warns of those that fail, in one warning.

        No lock is held: a module that another thread imports at this moment may wait for this very table. Two threads
        may both come here, and add the same things.
        """
        if self._loaded or get_ident() in self._loading:  # the latter: a module that is imported below asks
            return
        self._loading.add(get_ident())
        try:
            faults = [fault for point in _points(self.group) if (fault := self._fault(point)) is not None]
        finally:
            self._loading.discard(get_ident())
        self._loaded = True
        if faults:
            warnings.warn("\n".join(faults), BrokenExtension, stacklevel=4)

    def _fault(self, point: EntryPoint) -> str | None:
        """Add what an entry point names, or say why it cannot be."""
        try:
            self.add(point.load())
        except Exception as error:  # whatever a stranger's module does when it is imported
            where = f"{_distribution(point)}: entry point {point.name} = {point.value} of {self.group}"
            return f"{where} is left out: {type(error).__name__}: {error}"
        return None


def named(thing: object, others: tuple[object, ...], reserved: tuple[str, ...] = ()) -> None:
    """Raise WrongArgument for a thing without a `name` of its own."""
    name = getattr(thing, "name", None)
    if not isinstance(name, str) or not name:
        raise WrongArgument(f'{shown(thing)} has no name: name = "..." in its class')
    if name in reserved:
        raise WrongArgument(f"{shown(thing)} has the name {name!r}, which is taken")
    for other in others:
        if getattr(other, "name", None) == name:
            raise WrongArgument(f"{shown(thing)} and {shown(other)} have the same name, {name!r}")


def shown(thing: object) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def _points(group: str) -> list[EntryPoint]:
    return sorted(entry_points(group=group), key=lambda point: (_distribution(point), point.name))


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "?"
