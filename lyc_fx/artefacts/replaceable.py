"""The weights of a package, in whose place others are put: those that a merge makes of the base."""

from collections.abc import Collection, Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.artefacts.base_weights import BaseWeights, changed_weights
from lyc_fx.artefacts.package import Package
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Stack
from lyc_fx.errors import BadAdapter, Unsupported, WrongArgument
from lyc_fx.exporting.known import read_known
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.graph.places import Known
from lyc_fx.merging.blockwise import threaded_scheduler
from lyc_fx.merging.effect import Effect

__all__ = ["BaseWeights", "Replaceable", "replaceable"]


def replaceable(path: str, manifest: Manifest, run: object, base: BaseWeights | None) -> "Replaceable | None":
    """What can be replaced in a package without slots; None for other programs. Raises as `changed_weights`."""
    package = run if isinstance(run, Package) and manifest.weights else None
    if base is not None and (package is None or manifest.kind != "folded"):
        raise WrongArgument(
            f"{path}: base= is for packages (.aoti.pt2) with folded adapters, not for {manifest.kind!r}"
        )
    if package is None:
        return None
    known = read_known(manifest.weights)
    if manifest.kind == "base":
        return Replaceable(path, manifest, package, known, {})
    changed = None if base is None else changed_weights(path, manifest.weights, package.own, base, known)
    return Replaceable(path, manifest, package, known, changed)


@final
class Replaceable:
    """Of one loaded package."""

    def __init__(
        self, path: str, manifest: Manifest, package: Package, known: Known, changed: Mapping[str, Tensor] | None
    ) -> None:
        """`changed` are the weights of the base that are others in the package; None if the base is not known."""
        self._path, self._package, self._known, self._changed = path, package, known, changed
        self._ties = {name: group for group in manifest.weights["ties"] for name in group}
        self._replaced: Collection[str] = frozenset(changed or ())

    @torch.inference_mode(False)
    @torch.no_grad()
    def set(self, stack: Stack, *, strict: bool) -> Report:
        """Give the package the weights that `merge` makes of the base: `W ← round(base + Σ change)`, to the bit.

        Those that had adapters and have none any more get those of the base. Raises as `merge`; Unsupported if the base
        is not known, or if a weight is tied; BadAdapter for one that is not among the constants. Then all is as before.
        """
        if self._changed is None:
            raise Unsupported(
                f"{self._path}: adapters are folded into its weights, and those of the base are not in it: give them, "
                "lyc_fx.bind(…, base=model), or export the program without adapters"
            )
        binding = self._known.bind(stack, strict=strict)
        base = {**self._package.own, **self._changed}
        wanted = [name for name in binding.targets if binding.active(name) and self._held(name, binding, base)]
        merged, effects, notes = dict[str, Tensor](), dict[str, Effect](), list[str]()
        with threaded_scheduler() as scheduler:
            for name in wanted:
                turned = self._known.weights[name].transposed
                notes += binding.doubts(name, base[name], transposed=turned)
                merged[name] = torch.empty_like(base[name], memory_format=torch.contiguous_format)
                binding.fill(name, base[name], merged[name], scheduler, transposed=turned, effects=effects)
            scheduler.finish()
        report = binding.finished(effects, notes)
        report.refuse_rounded_away(lossy=False)
        restored = {name: base[name] for name in self._replaced if name not in merged}
        self._package.replace({**restored, **merged})
        self._replaced = merged.keys()
        report.warn_of_rounding()
        return report

    def _held(self, name: str, binding: Binding, constants: Collection[str]) -> bool:
        """Whether a weight is a constant. Raises if it is not, or not alone, unless another place has the same rows."""
        if name in self._ties:
            others = ", ".join(other for other in self._ties[name] if other != name)
            raise Unsupported(
                f"{self._path}: {name} is one constant with {others}, which a package cannot tell apart: fold the "
                "adapters before export, or untie the two before capture"
            )
        if name in constants:
            return True
        if any(piece.parameter in constants for piece in self._known.same.get(name, ())):
            return False
        raise BadAdapter(
            f"{self._path}: {name} is not among the package's constants, so that it cannot be replaced: the program "
            "does not read it, computes it from others, or has its values in its code: fold this adapter before "
            "export, or leave it out (adapters.exclude)"
        )
