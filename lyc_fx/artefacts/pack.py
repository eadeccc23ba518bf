"""Adapters as inputs of an exported program, in a file that needs neither lyc-fx nor the model."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.artefacts import onnx_adapter
from lyc_fx.artefacts.described import described
from lyc_fx.artefacts.filling import empty, numbers, taken
from lyc_fx.binding.report import Report
from lyc_fx.binding.stack import Adapters, Blocks, stacked
from lyc_fx.choices import Convention
from lyc_fx.errors import BadAdapter, NotApplicable, Unsupported, listing
from lyc_fx.exporting.form import Form
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.graph.slots import ADAPTER, STRENGTHS
from lyc_fx.storage.files import replacing, write_safetensors

FORMAT = "lyc_fx.pack"
"""The key of a packed file's metadata"""


@final
@dataclass(frozen=True, eq=False)
class Packed:
    """Adapters for the slots of one exported program."""

    tensors: dict[str, Tensor]
    """The inputs of the argument `adapter`, by name"""
    strengths: Tensor
    """What was asked for, for the argument `strengths`: `(sets,)`, float32"""
    report: Report | None
    """None for what was read from a file"""
    form: str
    """The digest of the form that they were packed for (`Manifest.form_digest`)"""


def pack(
    adapters: Adapters,
    artefact: "str | os.PathLike[str] | Manifest",
    path: str | os.PathLike[str] | None = None,
    *,
    strength: float | Blocks = 1.0,
    strict: bool = True,
    convention: Convention = "interpolate",
) -> Packed:
    """Make adapters of any file the inputs of a program that was exported with slots, and write them to a file.

    An adapter goes into a slot of its own algorithm and variant, filled up with zeros where the slot has more room; or,
    if its change is a sum that has an exact low-rank form (LoHa of rank r: r²), into a low-rank slot. As many sets may
    be given as the program has, or fewer; the n-th goes into the slots of the n-th. Nothing is approximated.

    `path` is a .safetensors file, whose tensors have the names of the inputs in `adapter`; its metadata say the
    strengths, and for which programs it is. Or it is an .onnx_adapter file, which ONNX Runtime activates for a run
    (`RunOptions.add_active_adapter`); it has the strengths too.

    Raises Unsupported for a file that was not exported with slots; BadAdapter, which lists all, for adapters that do
    not go into their slots, such as those of too large a rank, with the rank that they take; and as `splice`.
    """
    manifest, named = (artefact, "the program") if isinstance(artefact, Manifest) else (described(artefact), artefact)
    if not manifest.form:
        raise Unsupported(f"{named}: is of kind {manifest.kind!r}, which takes no adapters: export one with slots")
    form = Form.read(manifest.form)
    stack = stacked(adapters, strength, convention=convention)
    if len(stack.parts) > form.sets:
        raise BadAdapter(f"{len(stack.parts)} adapter sets, and the program has slots for {form.sets}")
    binding = form.known.bind(stack, strict=strict)
    free = list(form.slots)
    tensors, faults = dict[str, Tensor](), list[str]()
    alphas, shares = torch.zeros(form.alphas, dtype=torch.float64), torch.zeros(len(free), dtype=torch.float64)
    for name, bound in binding.targets.items():
        for each in bound:
            slots = [s for s in free if (s.weight, s.of_set, s.rows) == (name, each.index, each.rows)]
            shape = form.known.weights[name].logical
            shape = shape if each.rows is None else (each.rows[1] - each.rows[0], *shape[1:])
            try:
                slot, adapter = taken(each, slots, shape)
            except BadAdapter as error:
                faults.append(f"  {name}: {error}")
                continue
            free.remove(slot)
            tensors |= {slot.inputs[field]: factor for field, factor in adapter.factors().items()}
            shares[slot.share_at] = each.factor
            if slot.alpha_at is not None:
                alphas[slot.alpha_at] = numbers(slot, adapter)
    for slot in free:
        if not slot.adapter.inert(0.0):
            faults.append(f"  {slot.weight}: a {slot.adapter.name} has an effect even at strength 0: give one for it")
        tensors |= {slot.inputs[field]: factor for field, factor in empty(slot).items()}
    if faults:
        raise NotApplicable(listing(f"{len(faults)} adapters do not go into the program's slots:", faults), "")
    tensors |= {"shares": shares} | ({"alphas": alphas} if form.alphas else {})
    strengths = [part.strength for part in stack.parts] + [0.0] * (form.sets - len(stack.parts))
    packed = Packed(tensors, torch.tensor(strengths), binding.report, manifest.form_digest)
    if path is not None:
        _write(packed, Path(path), {"strengths": strengths, "form": packed.form, "adapters": stack.described()})
    return packed


def _write(packed: Packed, path: Path, said: dict[str, Any]) -> None:
    ordered = dict(sorted(packed.tensors.items()))
    if path.suffix == ".onnx_adapter":
        onnx_adapter.write(
            {f"{ADAPTER}.{name}": t for name, t in ordered.items()} | {STRENGTHS: packed.strengths}, path
        )
        return
    if path.suffix != ".safetensors":
        known = ".safetensors and .onnx_adapter"
        raise Unsupported(f"{path}: pack writes {known}, not {path.suffix or 'a file without suffix'}")
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered.items()}
    with replacing(path) as part, part.open("wb") as file:
        write_safetensors(file, layout, ordered.items(), {"format": "pt", FORMAT: json.dumps(said, sort_keys=True)})
