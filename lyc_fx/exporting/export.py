"""Saving a program, in a format that the file's suffix selects."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lyc_fx.errors import InvalidGraph, Unsupported, WrongArgument
from lyc_fx.exporting import aoti, onnx, pt2, weights
from lyc_fx.exporting.exported import to_exported_program
from lyc_fx.exporting.fresh import check as check_file
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.exporting.plain import plain
from lyc_fx.graph.program import BANK, facts, get_tensor
from lyc_fx.graph.program import weights as stored
from lyc_fx.storage.files import metadata_of, path_of, replacing_together

Write = Callable[[ExportedProgram, Path, Manifest, Mapping[str, str], object], None]
_FORMATS: Mapping[str, tuple[str, Write]] = {
    aoti.SUFFIX: ("aoti", aoti.write),
    ".pt2": ("pt2", pt2.write),
    ".onnx": ("onnx", onnx.write),
}
Kind = Literal["base", "folded", "adapted", "slots", "styles"]


def export(
    program: GraphModule, path: weights.Path_, *, metadata: Mapping[str, str] | None = None, check: bool = True
) -> None:
    """Save a program. `.safetensors` holds its weights under the base model's keys; `.pt2` holds a whole
    `torch.export` program, with the sizes that were dynamic at capture and their ranges (`torch.export.load` reads it).

    What is a program runs without lyc-fx and without the model's code: objects of a library's classes that the model
    takes or returns (`ModelOutput`, caches) are dicts of their fields. It holds a description of itself,
    `manifest.json`: inputs, outputs, adapters, digests. `check` runs it in a fresh process, in which neither lyc-fx nor
    transformers nor diffusers can be imported, on random inputs of the captured and of other sizes, and compares.

    `metadata`, a mapping of texts, goes into the safetensors header, or into the extra file `metadata.json` of a .pt2.
    The file appears under its name only when it is complete and was checked.

    Raises Unsupported for another suffix or dtype, for a program that torch cannot store, and for a file that does not
    run or computes something else; InvalidGraph if adapters are not folded yet (.safetensors), or weights have no
    values; BadFile if the file cannot be written. Warns with Untied if a .safetensors file holds two different values
    for what was one tensor in the model.
    """
    if not isinstance(program, nn.Module):
        raise WrongArgument(f"a captured program is expected first, not {type(program).__name__}")
    said = metadata_of(metadata)
    target = path_of(path, "the output")
    if target.suffix == ".safetensors":
        weights.write(program, path, {"format": "pt", **said})
        return
    suffix, runtime, write = _format(target)
    if not isinstance(program, GraphModule):
        raise InvalidGraph(f"{path}: {suffix} takes a captured program, not {type(program).__name__}")
    weights.refuse_empty(path, {str(node.target): get_tensor(program, str(node.target)) for node in stored(program)})
    made = aoti.with_fixed_ranks(plain(program)) if suffix == aoti.SUFFIX else plain(program)
    exported = _exported(made, path)
    manifest = Manifest.of(made, kind_of(program), exported)
    with replacing_together(path) as part:
        write(exported, part, manifest, said, path)
        if check:
            check_file(runtime, part, made, manifest, path)


def _format(path: Path) -> tuple[str, str, Write]:
    """The suffix of a file, what its runtime is called, and what writes it. Raises Unsupported for another suffix."""
    for suffix, (kind, write) in _FORMATS.items():
        if path.name.endswith(suffix):
            return suffix, kind, write
    known = ", ".join((".safetensors", *_FORMATS))
    raise Unsupported(f"{path}: export writes {known}, not {path.suffix or 'a file without suffix'}")


def _exported(program: GraphModule, path: object) -> ExportedProgram:
    try:
        return to_exported_program(program)
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise Unsupported(f"{path}: torch.export does not take this program: {reason}") from error


def kind_of(program: GraphModule) -> Kind:
    """What a program is, by what was done to it."""
    known = facts(program)
    if known.styles:
        return "styles"
    if known.slots is not None:
        return "slots"
    if hasattr(program, BANK):
        return "adapted"
    return "folded" if any(step.name == "fold" for step in known.steps) else "base"
