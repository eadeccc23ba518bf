"""Several processes that share a fold, under torchrun; alone, one process is the first and only rank."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch.distributed as dist

from lyc_fx.errors import LycFxError

T = TypeVar("T")


@final
@dataclass(frozen=True)
class Ranks:
    """This process among all."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """A step of all ranks: each waits for the others, and where one fails all raise."""
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
        said = self._gathered(None if failure is None else f"rank {self.rank}: {failure}")
        if failure is not None:
            raise failure
        others = [text for text in said if text is not None]
        if others:
            raise LycFxError(f"{others[0]} (so nothing was written)")

    def said(self, make: Callable[[], str]) -> str:
        """What the first rank makes, known to all. Raises what the first rank raises."""
        made: str | None = None
        with self.together():
            made = make() if self.first else None
        found = self._gathered(made)[0]
        assert isinstance(found, str)
        return found

    def share(self, items: Sequence[T], size: Callable[[T], int]) -> list[T]:
        """This rank's part: the largest first, each to the rank that has least."""
        loads = [0] * self.count
        mine = []
        for item in sorted(items, key=size, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += size(item)
            if rank == self.rank:
                mine.append(item)
        return mine

    def _gathered(self, value: Any) -> list[Any]:
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


@contextmanager
def ranks() -> Iterator[Ranks]:
    """The process group of torchrun's environment, or of the caller; else one rank."""
    if dist.is_available() and dist.is_initialized():
        yield Ranks(dist.get_rank(), dist.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ:
        dist.init_process_group("gloo")
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    else:
        yield Ranks()
