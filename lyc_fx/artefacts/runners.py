"""The runtimes of exported programs: each takes the inputs by name, in their order, and gives the outputs in order."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lyc_fx.artefacts.package import Package
from lyc_fx.errors import BadFile, Unsupported
from lyc_fx.exporting import aoti

Runner = Callable[[Mapping[str, Any]], list[Any]]


def runner(path: Path) -> Runner:
    """The runtime for a file, by its suffix, with the program loaded. Raises BadFile for one that does not load."""
    load = Package if path.name.endswith(aoti.SUFFIX) else _onnx if path.suffix == ".onnx" else _program
    try:
        return load(path)
    except (RuntimeError, ValueError, OSError) as error:
        raise BadFile(f"{path}: does not load: {' '.join(str(error).split())[:300]}") from error


def _program(path: Path) -> Runner:
    """A `torch.export` program."""
    exported = torch.export.load(path)
    module, spec = exported.module(), exported.call_spec.in_spec
    assert spec is not None

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        args, kwargs = pytree.tree_unflatten(list(inputs.values()), spec)
        with torch.no_grad():
            return pytree.tree_leaves(module(*args, **kwargs))

    return run


def _onnx(path: Path) -> Runner:
    """A graph for ONNX Runtime, on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise Unsupported(f'{path}: needs ONNX Runtime: pip install "lyc-fx[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # it warns of every default that can be replaced
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        feeds = {name: value.detach().cpu().numpy() for name, value in inputs.items() if isinstance(value, Tensor)}
        return [torch.from_numpy(result) for result in session.run(None, feeds)]

    return run
