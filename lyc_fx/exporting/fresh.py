"""Checking a file before it gets its name: what it computes in a process of its own, beside what the program does."""

import subprocess
import sys
from collections.abc import Sequence
from importlib.resources import files
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.errors import Unsupported
from lyc_fx.exporting.interface import input_names
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.graph.inputs import pytree_info
from lyc_fx.graph.slots import ADAPTER
from lyc_fx.graph.trials import outputs, trials
from lyc_fx.graph.validation import gap, precision

_CLOSE = {"pt2": 5e-6, "onnx": 5e-5, "aoti": 5e-5}
"""The largest difference of an output, relative to its norm: other kernels have another order of sums"""
_SHOWN = 5
"""Inputs that a message names"""


def check(kind: str, file: Path, program: GraphModule, manifest: Manifest, path: object) -> None:
    """Run a file on random inputs at the program's sizes, and at others that it takes, and compare the outputs.

    Adapters that are inputs also have another rank, where that may vary.

    Raises Unsupported, and names `path`, the file's name later, if it does not load without lyc-fx and the model's
    library, or computes something else.
    """
    given = list(trials(program))
    spec, names = pytree_info(program).in_spec, input_names(program)
    if (others := _of_other_rank(manifest)) is not None:
        given.append([others.get(name, value) for name, value in zip(names, given[0], strict=True)])
    wanted = [[each for each in outputs(program, flat) if isinstance(each, Tensor)] for flat in given]
    with TemporaryDirectory() as folder:
        of_inputs, of_outputs = Path(folder, "inputs"), Path(folder, "outputs")
        torch.save([(*pytree.tree_unflatten(flat, spec), _named(names, flat)) for flat in given], of_inputs)
        script = files("lyc_fx.exporting").joinpath("fresh_run.py").read_text()
        command = [sys.executable, "-P", "-c", script, kind, str(file), str(of_inputs), str(of_outputs)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            lines = [line.strip() for line in ran.stderr.splitlines() if "Error" in line]  # of several causes
            reason = "; ".join(dict.fromkeys(lines)) or f"exit code {ran.returncode}"
            raise Unsupported(f"{path}: nothing was written: the file does not run in a fresh process: {reason}")
        found = torch.load(of_outputs, weights_only=True)
    tolerance = max(_CLOSE[kind], 4 * precision(program))
    for flat, old, new in zip(given, wanted, found, strict=True):
        worst = max(map(gap, old, new), default=0.0) if len(old) == len(new) else float("inf")
        if worst > tolerance:
            shown = islice(_named(names, flat).items(), _SHOWN)
            sizes = ", ".join(f"{name} {tuple(each.shape)}" for name, each in shown)
            raise Unsupported(
                f"{path}: nothing was written: in a fresh process the file computes something else than the program, "
                f"by {worst:.1e} of an output's norm, for inputs such as {sizes}"
            )


def _named(names: Sequence[str], flat: Sequence[Any]) -> dict[str, Tensor]:
    return {name: value for name, value in zip(names, flat, strict=True) if isinstance(value, Tensor)}


def _of_other_rank(manifest: Manifest) -> dict[str, Tensor] | None:
    """Factors by the names of their inputs, of one rank more; None where no rank may vary."""
    factors = [each for slot in manifest.form.get("slots", ()) for each in slot["factors"].values() if each["ranks"]]
    rng = torch.Generator().manual_seed(1)
    found = {}
    for each in factors:
        shape = [size + (at in each["ranks"]) for at, size in enumerate(each["shape"])]
        found[f"{ADAPTER}.{each['input']}"] = torch.randn(shape, generator=rng).to(getattr(torch, each["dtype"]))
    return found or None
