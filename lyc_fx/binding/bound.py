"""What was bound to each weight, and the merged weight that it makes."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.binding.report import Report
from lyc_fx.errors import BadAdapter
from lyc_fx.merging.blocks import BLOCK
from lyc_fx.merging.blockwise import Scheduler, block_merger, run_serially
from lyc_fx.merging.effect import Effect
from lyc_fx.merging.merged import Change
from lyc_fx.naming import Rows


@final
@dataclass(frozen=True)
class Bound:
    """One adapter of one set, bound to a weight."""

    adapter: Adapter
    index: int
    """The position of its set in the stack"""
    strength: float
    """The strength of the set"""
    factor: float = 1.0
    """The factor of the block strengths for this weight"""
    rows: Rows | None = None
    """The rows of the weight that it acts on; None for all"""

    @property
    def total(self) -> float:
        """The strength on this weight: that of the set times the factor."""
        return self.strength * self.factor

    @property
    def inert(self) -> bool:
        """Whether this leaves every bit of the weight as it is, as at strength 0."""
        return self.adapter.inert(self.total)

    def change(self, device: torch.device) -> Change:
        """Return the change that `families.merged` takes, with the factors on a device."""
        return Change(self.adapter.to_device(device), self.total, self.rows)


@final
@dataclass(frozen=True)
class Binding:
    """All adapters of a stack, bound to the weights of a model."""

    targets: Mapping[str, tuple[Bound, ...]]
    """By the model's name of each weight, its adapters in the order in which they are summed"""
    report: Report
    sequential: bool = False
    """Whether each set is applied to the result of the one before"""
    allow_nonfinite: bool = False
    """Whether base weights may hold NaN and infinity"""

    def active(self, target: str) -> list[Bound]:
        """Return the adapters that change a weight: those that are not inert."""
        return [bound for bound in self.targets.get(target, ()) if not bound.inert]

    def fill(
        self,
        target: str,
        weight: Tensor,
        out: Tensor,
        scheduler: Scheduler,
        *,
        transposed: bool,
        effects: dict[str, Effect],
        compute: torch.dtype | None = None,
    ) -> None:
        """Merge all adapters of the weight `target` into `out`, block by block.

        `out` has the shape of `weight`, and may be the same tensor. The work may be done later: when `scheduler` has
        finished it, the effect is in `effects`, and BadAdapter is raised if the base is not finite or the result
        overflows (`out` then holds that result).
        """
        changes = [bound.change(out.device) for bound in self.active(target)]
        block, rows = block_merger(
            weight, changes, out, transposed=transposed, compute=compute, sequential=self.sequential
        )

        def solved(each: Rows) -> Effect:
            with solvable(target):
                return block(each)

        def done(effect: Effect) -> None:
            effect.refuse(target, out.dtype, out.numel(), allow_nonfinite=self.allow_nonfinite)
            effects[target] = effect

        if out.device.type != "cpu" or (len(rows) == 1 and weight.numel() > BLOCK):
            scheduler = run_serially  # threads do not help on a GPU; a single block is better spread over all threads
        scheduler(solved, rows, done)

    def finished(self, effects: Mapping[str, Effect], notes: Sequence[str]) -> Report:
        """Return the report of a finished merge, with the effects on the weights and further notes."""
        return replace(self.report, notes=(*self.report.notes, *notes)).measured(effects)

    def doubts(self, target: str, weight: Tensor, *, transposed: bool) -> list[str]:
        """Return warnings that this weight is not the base that its adapters were trained on."""
        base = weight.t() if transposed else weight
        found = []
        for bound in self.active(target):
            own = base if bound.rows is None else base[slice(*bound.rows)]
            with solvable(target):
                found.append(bound.adapter.to_device(weight.device).doubt(own))
        return [f"{target}: {doubt}" for doubt in found if doubt is not None]


@contextmanager
def solvable(target: str) -> Iterator[None]:
    """Turn torch's errors from linear algebra, such as for a weight that holds NaN, into BadAdapter."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise BadAdapter(f"{target}: {error}") from error
