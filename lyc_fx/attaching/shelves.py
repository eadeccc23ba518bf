"""The adapters of one served layer: for each form of adapters a bank, in which each set has a row."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.attaching.bank import Bank
from lyc_fx.attaching.forms import Form

Read = Callable[[str], Tensor]
"""From the name of a tensor to the part of it that is one set's"""
Write = Callable[[Read], None]
"""Gives the tensors of one set their values"""


@final
@dataclass(frozen=True, eq=False)
class Shelf:
    """The sets that have one form of adapters for a layer."""

    form: Form
    bank: Bank
    rows: Mapping[str, int]
    """By the name of a set"""
    count: int
    """How many rows the bank has"""

    @classmethod
    def empty(cls, form: Form, like: Mapping[str, Tensor], count: int, device: torch.device) -> "Shelf":
        """With `count` rows of such tensors, without values."""
        rows = {n: torch.empty(count, *t.shape, dtype=t.dtype, device=device) for n, t in like.items()}
        return cls(form, Bank(rows, saved=False), {}, count)

    def without(self, name: str) -> "Shelf":
        """The same, with the row of a set free."""
        return replace(self, rows={each: row for each, row in self.rows.items() if each != name})

    def put(self, name: str, write: Write, spare: int, undo: ExitStack) -> "Shelf":
        """The same with a set in a free row; a bank without one grows, and then by `spare` more.

        `undo` is given what restores the row.
        """
        row = next((n for n in range(self.count) if n not in self.rows.values()), None)
        if row is None:
            return self._grown(1 + spare).put(name, write, spare, undo)
        for tensor in self.bank.buffers():
            undo.callback(tensor[row].copy_, tensor[row].clone())
        write(lambda each: self.bank.read(each)[row])
        return replace(self, rows={**self.rows, name: row})

    def _grown(self, more: int) -> "Shelf":
        rows = {n: torch.cat([t, t.new_empty(more, *t.shape[1:])]) for n, t in self.bank.named_buffers()}
        return replace(self, bank=Bank(rows, saved=False), count=self.count + more)

    def picked(self, names: Sequence[str | None]) -> list[list[int]]:
        """Of the samples of a batch, given by the names of their sets: those with a row here, and the rows."""
        found = [(sample, self.rows[name]) for sample, name in enumerate(names) if name and name in self.rows]
        return [[sample for sample, _ in found], [row for _, row in found]]


Shelves = tuple[Shelf, ...]


def placed(
    shelves: Shelves,
    name: str,
    write_to: Callable[[Form], Write | None],
    make: Callable[[], Shelf],
    spare: int,
    undo: ExitStack,
) -> Shelves:
    """The shelves of a layer with one set more: on the first whose form it has, or on one that `make` makes.

    `write_to` gives what writes the set into a row of a form; None if it has another form.
    """
    for position, shelf in enumerate(shelves):
        write = write_to(shelf.form)
        if write is not None:
            return (*shelves[:position], shelf.put(name, write, spare, undo), *shelves[position + 1 :])
    made = make()
    write = write_to(made.form)
    assert write is not None
    return (*shelves, made.put(name, write, spare, undo))
