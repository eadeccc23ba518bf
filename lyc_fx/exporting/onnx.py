"""`.onnx`: a graph for ONNX Runtime, OpenVINO and others; the description is its metadata entry `manifest.json`.

Inputs and outputs have the names in the description (an output that is called as an input, a UNet's `sample`, is
`output.sample`), and weights those of the state dict. What an adapter is put into
has a default, zeros, so that the program runs without one, and ONNX Runtime can activate one (`.onnx_adapter`).
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from lyc_fx.errors import Unsupported
from lyc_fx.exporting.logs import quiet
from lyc_fx.exporting.manifest import NAME, Manifest
from lyc_fx.graph.slots import ADAPTER, STRENGTHS

_WHOLE = 1_900_000_000
"""Bytes of weights above which they lie in a file of their own: a protobuf message holds less than 2 GB"""
_LEAST = 2
"""Of a rank that may vary, in the defaults"""


def write(exported: ExportedProgram, file: Path, manifest: Manifest, said: Mapping[str, str], path: object) -> None:
    """Write a program; large weights go to `<file>.data` beside it.

    Raises Unsupported, which names `path`, without the packages that write it, and for operators that ONNX lacks.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise Unsupported(f'{path}: needs the packages of the extra "onnx": pip install "lyc-fx[onnx]"') from error
    inputs = [value.name for value in manifest.inputs if not value.is_python]
    outputs = [f"output.{v.name}" if v.name in inputs else v.name for v in manifest.outputs]
    try:
        with quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Its optimizer folds batch norms into convolutions, and renames weights.
            made = torch.onnx.export(
                exported, dynamo=True, optimize=False, verbose=False, input_names=inputs,
                output_names=outputs,
            )  # fmt: skip
    except Exception as error:  # it raises errors of many classes
        raise Unsupported(f"{path}: ONNX does not take this program: {_reason(error)}") from error
    assert made is not None
    model: Any = made.model
    model.producer_name = "lyc-fx"
    model.metadata_props.update({NAME: manifest.text(), **said})
    _rename_inner(model)
    _add_defaults(model, manifest, onnx_ir)
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    onnx_ir.save(model, file, external_data=f"{Path(str(path)).name}.data" if size > _WHOLE else None)


def _rename_inner(model: Any) -> None:
    """Give results inside other names than inputs, outputs and weights have."""
    outer = [*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()]
    reserved = {value.name: value for value in outer}
    for node in model.graph.all_nodes():
        for position, value in enumerate(node.outputs):
            if value.name in reserved and reserved[value.name] is not value:
                value.name = f"{value.name}.of.{node.name or node.op_type}.{position}"


def _add_defaults(model: Any, manifest: Manifest, ir: Any) -> None:
    """Zeros for the inputs that adapters go into, and strength 1."""
    if not manifest.form:
        return
    found = {value.name: value for value in model.graph.inputs}
    for value in manifest.inputs:
        if value.name != STRENGTHS and not value.name.startswith(f"{ADAPTER}."):
            continue
        shape = [_LEAST if isinstance(size, str) else size for size in value.shape]
        default = torch.full(shape, float(value.name == STRENGTHS), dtype=getattr(torch, value.dtype))
        given = found[value.name]
        given.const_value = ir.tensor(default.numpy(), name=value.name)
        model.graph.initializers[value.name] = given


def _reason(error: BaseException) -> str:
    """The innermost cause, in one line: torch's own error is a page about how to report it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:300]
