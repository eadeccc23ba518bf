"""Sharing a fold among several processes under torchrun. A process on its own is the first and only rank."""

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
    """This process's place among all processes of the fold."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    @contextmanager
    def together(self) -> Iterator[None]:
        """Run a step on all ranks: each waits for the others at its end, and if one fails, all raise."""
        failure: BaseException | None = None
        try:
            yield
        except BaseException as error:
            failure = error
        said = self._gather(None if failure is None else f"rank {self.rank}: {failure}")
        if failure is not None:
            raise failure
        others = [text for text in said if text is not None]
        if others:
            raise LycFxError(f"{others[0]} (so nothing was written)")

    def broadcast(self, make: Callable[[], str]) -> str:
        """Call `make` on the first rank and return its result on all ranks. If it raises, all ranks raise."""
        made: str | None = None
        with self.together():
            made = make() if self.first else None
        found = self._gather(made)[0]
        assert isinstance(found, str)
        return found

    def share(self, items: Sequence[T], size: Callable[[T], int]) -> list[T]:
        """Return this rank's share of the items: each, the largest first, goes to the rank with the least so far."""
        loads = [0] * self.count
        mine = []
        for item in sorted(items, key=size, reverse=True):
            rank = loads.index(min(loads))
            loads[rank] += size(item)
            if rank == self.rank:
                mine.append(item)
        return mine

    def _gather(self, value: Any) -> list[Any]:
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found


@contextmanager
def join_ranks() -> Iterator[Ranks]:
    """Join the caller's process group, or that of torchrun's environment variables; else be the only rank."""
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
