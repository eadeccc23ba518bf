"""A plan: how each adapted layer of a program runs."""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, Self, final, get_args

from torch.fx import GraphModule

from lyc_fx.binding.report import table
from lyc_fx.errors import BadFile, WrongArgument
from lyc_fx.graph.layers import sites
from lyc_fx.graph.readers import reads_bank

Form = Literal["chain", "resident", "rebuilt"]
"""Adapters on activations; a merged weight that `stage` computes once; a merged weight that every call computes"""


@final
@dataclass(frozen=True)
class Planned:
    """The choice for one layer, and what it was chosen from."""

    site: str
    """The name of the layer's node"""
    form: Form
    weight: str = ""
    adapters: str = ""
    """In the field's words"""
    seconds: float = 0.0
    """The predicted time of the layer without adapters"""
    ratios: Mapping[Form, float] | None = None
    """By form, the predicted time over that; a form that does not exist is missing"""
    memory: Mapping[Form, int] | None = None
    """By form, the bytes of what `stage` makes resident"""
    flips: str = ""
    """For which sizes chain and rebuilt change places"""


@final
@dataclass(frozen=True)
class Plan:
    """The choices for all adapted layers. It can be printed, edited (`only`, `with_form`), saved and loaded."""

    layers: tuple[Planned, ...]

    @classmethod
    def default(cls, gm: GraphModule) -> Self:
        """A chain for every adapted layer that has one; what has none is resident once staged."""
        return cls(tuple(Planned(s.node.name, "chain") for s in sites(gm.graph) if reads_bank(s.weight)))

    @property
    def chains(self) -> tuple[str, ...]:
        """The sites that get a chain."""
        return tuple(each.site for each in self.layers if each.form == "chain")

    def only(self, *names: str) -> Self:
        """The same plan with chains for these sites only; the others keep their merged weight resident."""
        return self.with_form("chain", *names).with_form("resident", *(set(self._names()) - set(names)))

    def with_form(self, form: Form, *names: str) -> Self:
        """The same plan with another form for these sites. Raises WrongArgument for a name that is none of them."""
        unknown = sorted(set(names) - set(self._names()))
        if unknown:
            raise WrongArgument(f"{unknown[0]} is no adapted layer of the plan, which has {', '.join(self._names())}")
        if form not in get_args(Form):
            raise WrongArgument(f"{form} is no form: use {', '.join(get_args(Form))}")
        return replace(self, layers=tuple(replace(p, form=form) if p.site in names else p for p in self.layers))

    def refuse_unknown(self, gm: GraphModule) -> None:
        """Raise WrongArgument if the plan is for layers that a program does not have."""
        known = {site.node.name for site in sites(gm.graph)}
        unknown = [name for name in self._names() if name not in known]
        if unknown:
            raise WrongArgument(f"the plan is for another program: this one has no layer {', '.join(unknown[:5])}")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as json."""
        Path(path).write_text(json.dumps([asdict(each) for each in self.layers], indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote. Raises BadFile for anything else."""
        try:
            rows = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls(tuple(Planned(**row) for row in rows)).checked()
        except (OSError, ValueError, TypeError, WrongArgument) as error:
            raise BadFile(f"{path} is no plan of lyc-fx: {error}") from error

    def checked(self) -> Self:
        """Raise WrongArgument for a form that does not exist."""
        for each in self.layers:
            self.with_form(each.form)
        return self

    def __str__(self) -> str:
        return "\n".join(table([dict(_cells(each)) for each in self.layers])) or "no adapted layers"

    def _names(self) -> Collection[str]:
        return [each.site for each in self.layers]


def _cells(planned: Planned) -> Iterator[tuple[str, object]]:
    yield "layer", planned.site
    yield "form", planned.form
    if planned.ratios is not None:
        yield "weight", planned.weight
        yield "adapters", planned.adapters
        for form in get_args(Form):
            ratio = planned.ratios.get(form)
            yield form, "-" if ratio is None else f"×{ratio:.2f}"
        memory = (planned.memory or {}).get(planned.form, 0)
        yield "resident MiB", f"{memory / 2**20:.2f}"
        yield "flips", planned.flips
