"""Serving several adapters in one batch of a living model: each sample has its own, or none."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.bank import Bank
from lyc_fx.attaching.batched import Banks
from lyc_fx.attaching.masks import Mask, Over
from lyc_fx.attaching.notes import with_notes
from lyc_fx.attaching.served_layers import AdapterRow, Layers
from lyc_fx.attaching.units import units
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import Unsupported, WrongArgument
from lyc_fx.model.merge import bind_model
from lyc_fx.model.whole import Pipeline, as_module


def serve(
    model: nn.Module | Pipeline,
    adapters: Mapping[str, Adapters],
    strength: float = 1.0,
    *,
    rank: int | None = None,
    most: int | None = None,
    strict: bool = True,
    convention: Convention = "interpolate",
    component: str | Sequence[str] | None = None,
) -> "Served":
    """Let each sample of a batch run with one of several adapters, or with none, by one call of the model.

    `adapters` maps a name of yours to what `attach` takes: a file, what `load` returned, or a list of (adapters,
    strength) pairs. Their algorithms and ranks may differ. `choose` says which of them each sample uses:

        served = lyc_fx.serve(model, {"ink": "ink.safetensors", "oil": "oil.safetensors"}, rank=32)
        served.choose(["oil", None, "ink", "oil"])
        y = model(x)  # of four samples

    The first dimension of every layer's input must be that of the samples. Products with the model's own weights are
    those of the whole batch; a sample costs the chain of its own adapters besides, and one without adapters gets what
    the model gives, up to the rounding of a bias that is added apart. Compiled, other choices compile nothing again.

    `most`: how many sets there may be at once (`Served.put`); None: as many as are given. `rank`, `strict`,
    `convention` and `component` are as in `attach`.

    Raises as `attach`; Unsupported too for adapters of a `MultiheadAttention`.
    """
    most = max(len(adapters), 1) if most is None else most
    if isinstance(most, bool) or not isinstance(most, int) or most < max(len(adapters), 1):
        raise WrongArgument(f"most={most!r}: it must be a number, {max(len(adapters), 1)} or more")
    served = Served(as_module(model), Room(rank), most)
    row = partial(served._row, strength=strength, strict=strict, convention=convention, component=component)
    served._put({name: row(given) for name, given in adapters.items()})
    return served


@final
class Served:
    """Adapters for the samples of a batch. As a context manager, it takes them off at the end."""

    def __init__(self, model: nn.Module, room: Room, most: int) -> None:
        if any(isinstance(module, (Bank, Banks)) for module in model.modules()):
            raise Unsupported("the model has adapters attached already: use their set(), or detach() them first")
        self._model, self._most, self._layers = model, most, Layers(model, room)
        self._sets: dict[str, AdapterRow] = {}
        self._chosen: list[tuple[str | None, ...]] = []
        self._blended: dict[str, Mask] = {}

    def __repr__(self) -> str:
        names = ", ".join(self._sets) or "nothing"
        return f"<Served {type(self._model).__name__}: {names}, of at most {self._most}>"

    @property
    def reports(self) -> dict[str, Report]:
        """What was bound where, by the name of each set."""
        return {name: row.report for name, row in self._sets.items()}

    def choose(self, names: Iterable[str | None], *, copies: int = 1) -> None:
        """Let the n-th sample use the set of the n-th name, or none.

        `copies`: the model, or some components of a pipeline, may also be called with the batch that many times over,
        one after another, as a pipeline with guidance does (2). Raises WrongArgument, for an unknown name too.
        """
        chosen = tuple(names)
        unknown = [name for name in chosen if name is not None and name not in self._sets]
        if unknown or not chosen:
            raise WrongArgument(f"{unknown[0]!r} is no set here: there are {self!r}" if unknown else "no samples")
        if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
            raise WrongArgument(f"copies={copies!r}: it must be a number, 1 or more")
        self._chosen, self._blended = ([chosen] if copies == 1 else [chosen, chosen * copies]), {}
        self._layers.choose(self._chosen)

    def blend(
        self, masks: Mapping[str, Tensor | float], *, over: Over = "tokens", elsewhere: float | None = None
    ) -> None:
        """Let all samples use several sets, each where and as far as its mask says, instead of one for each sample.

        Every adapted layer gives `y = y₀ + Σ m · (y_set - y₀)`, y₀ its results without adapters: for adapters that add
        to a weight, m multiplies the strength, and for rotations and norms it is between the base and them. A mask is
        a number, for all positions (as in a schedule), or a tensor. With `over="tokens"` it is `(tokens)` or
        `(samples, tokens)`; with `over="image"` `(height, width)` or `(samples, height, width)`, averaged or repeated
        for layers of other resolutions, and row by row for layers of as many tokens. A text of just as many tokens as
        there are pixels at some resolution would be taken for them: leave its layers out of the set.

        `elsewhere` is the mask for layers without such positions, such as those of text or time: 0.0 leaves them
        alone, 1.0 lets the set act there in full. None: they raise WrongArgument when they are called.

        Other masks of the same sizes, over the same sets, compile nothing again. Raises WrongArgument.
        """
        unknown = [name for name in masks if name not in self._sets]
        if unknown or not masks:
            raise WrongArgument(f"{unknown[0]!r} is no set here: there are {self!r}" if unknown else "no masks")
        self._blended = {name: Mask.of(mask, over, elsewhere) for name, mask in masks.items()}
        self._layers.blend(self._blended)
        self._chosen = []

    @torch.inference_mode(False)
    @torch.no_grad()
    def put(
        self,
        name: str,
        adapters: Adapters,
        strength: float = 1.0,
        *,
        strict: bool = True,
        convention: Convention = "interpolate",
        component: str | Sequence[str] | None = None,
    ) -> Report:
        """Add a set, or another in the place of one of that name.

        Where layers have a free row for its form (algorithm, variant and rank), nothing is compiled again. Raises
        WrongArgument where there is no place for one more; else as `serve`. Then all is as before.
        """
        row = self._row(adapters, strength=strength, strict=strict, convention=convention, component=component)
        self._put({name: row})
        return row.report

    def remove(self, name: str) -> None:
        """Free the place of a set. Raises WrongArgument for an unknown name, and for one that samples use."""
        if name not in self._sets:
            raise WrongArgument(f"{name!r} is no set here: there are {self!r}")
        if name in self._blended or any(name in batch for batch in self._chosen):
            raise WrongArgument(f"{name!r} is in use: choose() or blend() others first")
        self._layers.remove(name)
        del self._sets[name]

    def detach(self) -> None:
        """Take all adapters off: every module runs as before `serve`."""
        self._layers.detach()
        self._sets.clear()
        self._chosen, self._blended = [], {}

    @torch.no_grad()
    def _row(self, adapters: Adapters, *, strength: float, strict: bool, **options: Any) -> AdapterRow:
        stack = stacked(adapters, strength, **options)
        found, binding = bind_model(self._model, stack, strict=strict)
        targets = {name: found[name] for name in binding.targets}
        return AdapterRow(binding, targets, units(self._model, targets), with_notes(binding, targets))

    @torch.inference_mode(False)
    @torch.no_grad()
    def _put(self, rows: Mapping[str, AdapterRow]) -> None:
        sets = {**self._sets, **rows}
        if len(sets) > self._most:
            raise WrongArgument(f"no place for one more set: {self!r}; remove() one, or serve with most=")
        self._layers.put(sets, list(rows), self._most - len(sets))
        self._sets = sets
        if self._blended:
            self._layers.blend(self._blended)
        elif self._chosen:
            self._layers.choose(self._chosen)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()
