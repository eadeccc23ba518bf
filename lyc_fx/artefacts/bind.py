"""A loader of exported programs: by names, and checking what the runtimes do not."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.artefacts.described import described
from lyc_fx.artefacts.interface import Interface
from lyc_fx.artefacts.pack import Packed, pack
from lyc_fx.artefacts.packed_file import for_slots, read_packed
from lyc_fx.artefacts.replaceable import BaseWeights, replaceable
from lyc_fx.artefacts.runners import Runner, runner
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter, WrongArgument
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.graph.slots import ADAPTER, STRENGTHS


def bind(artefact: str | os.PathLike[str], base: BaseWeights | None = None) -> "Artefact":
    """Load a program that `lyc_fx.export` has written, to run it: `artefact(…)`, as the model is called.

    With slots, `artefact.set(adapters)` puts adapters in, and `artefact.strengths` are the sets' strengths; with
    styles, `artefact.strengths` are those of the adapters inside. A package of AOTInductor without either gets other
    weights by `artefact.set(adapters)`, those that `merge` makes of the base: its own, or `base`, the model that
    adapters were folded into before export, its state dict, or a safetensors file of it.

    What the runtimes take without a word, inputs of other dtypes or shapes, in another order, or under other names,
    raises WrongArgument.

    Raises BadFile for a file that cannot be read, or that lyc-fx has not exported; WrongArgument for a `base` that is
    not needed, or is not the one.
    """
    manifest = described(artefact)
    return Artefact(str(artefact), manifest, runner(Path(artefact)), base)


@final
class Artefact:
    """An exported program, with the adapters and strengths that it runs with. It owns their tensors."""

    def __init__(self, path: str, manifest: Manifest, run: Runner, base: BaseWeights | None = None) -> None:
        self._path, self._run = path, run
        self.manifest = manifest
        """What the file says about itself"""
        self._interface = Interface.of(manifest, path)
        self._strengths = torch.ones(len(manifest.sets))
        self._adapter: dict[str, Tensor] = {}
        self._weights = replaceable(path, manifest, run, base)
        if manifest.form:
            self.set(())

    def __repr__(self) -> str:
        return f"<Artefact {self._path}: {self.manifest.kind}, {len(self.manifest.inputs)} inputs>"

    @property
    def strengths(self) -> Tensor:
        """A strength for each set, `(sets,)`; with styles also `(batch, sets)`, for each sample."""
        return self._strengths

    @strengths.setter
    def strengths(self, values: Tensor | Sequence[Any]) -> None:
        given = torch.as_tensor(values, dtype=torch.float32).detach().clone()
        sets = len(self.manifest.sets)
        each = self.manifest.kind == "styles" and given.dim() == 2
        if not sets or given.shape[-1:] != (sets,) or not (given.dim() == 1 or each):
            raise WrongArgument(
                f"{self._path}: strengths of shape {tuple(given.shape)}, and it has {sets} adapter sets"
            )
        if not bool(given.isfinite().all()):
            raise BadAdapter(f"{self._path}: the strengths {given.tolist()} are not all finite")
        self._strengths = given

    def set(
        self,
        adapters: "Adapters | Packed",
        strength: float | Blocks = 1.0,
        *,
        strict: bool = True,
        convention: Convention = "interpolate",
    ) -> Report | None:
        """Run with other adapters: of any file, which are packed (`lyc_fx.pack`), or packed before; () for none.

        A package without slots gets the weights that `merge` makes of its base. Returns the report, or None for a
        packed file. Raises as `pack` or `merge`; BadAdapter for what was packed for another program, or is for a
        weight that is not among a package's constants. Then all is as before.
        """
        found = adapters if isinstance(adapters, Packed) else read_packed(adapters)
        if found is None and self._weights is not None:
            return self._weights.set(stacked(adapters, strength, convention), strict=strict)  # type: ignore[arg-type]
        if found is None:
            found = pack(adapters, self.manifest, strength=strength, strict=strict, convention=convention)  # type: ignore[arg-type]
        elif isinstance(strength, Mapping):
            raise WrongArgument(f"{self._path}: block weights are part of packed adapters: give them to lyc_fx.pack")
        elif not isinstance(strength, (int, float)):
            raise WrongArgument(f"{self._path}: the strength {strength!r} is not a number")
        else:
            found = replace(found, strengths=found.strengths * strength)
        adapter = for_slots(found, self.manifest, self._path)
        self.strengths = found.strengths
        self._adapter = adapter
        return found.report

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it. Arguments are as the model's, by position or by name; results are tensors, dicts and tuples of them.

        Raises WrongArgument for what the program does not take.
        """
        own = self._interface.flat(args, kwargs)
        given = own | self._added(own)
        return self._interface.results(self._run({value.name: given[value.name] for value in self.manifest.inputs}))

    def _added(self, own: Mapping[str, Any]) -> dict[str, Tensor]:
        """The inputs that are no arguments of the model."""
        found = {f"{ADAPTER}.{name}": tensor for name, tensor in self._adapter.items()}
        if not self.manifest.sets:
            return found
        strengths = self._strengths
        if self.manifest.kind == "styles":
            batch = next(len(value) for value in own.values() if isinstance(value, Tensor) and value.dim())
            if strengths.dim() == 2 and len(strengths) != batch:
                raise WrongArgument(
                    f"{self._path}: strengths for {len(strengths)} samples, and the batch has {batch}: set .strengths"
                )
            strengths = strengths.expand(batch, -1)
        return {**found, STRENGTHS: strengths.contiguous()}
