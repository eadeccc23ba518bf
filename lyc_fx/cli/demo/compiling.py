"""Using torch.compile, even on a machine without a C++ compiler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from lyc_fx.cli.demo.search import Model


@torch.no_grad()
def compile_program(gm: GraphModule, inputs: Mapping[str, Tensor]) -> tuple[Model, str]:
    """Compile a program, and run it once. Returns the result and the name of the backend.

    Without a C++ compiler and Python's headers, which inductor needs, the backend is aot_eager.
    """
    try:
        return _run_once(torch.compile(gm, fullgraph=True, dynamic=True), inputs), "inductor"
    except RuntimeError as error:
        torch.compiler.reset()
        reason = str(error).strip().partition("\n")[0]
        model = _run_once(torch.compile(gm, fullgraph=True, dynamic=True, backend="aot_eager"), inputs)
        return model, f"aot_eager, as inductor cannot build here ({reason})"


def _run_once(model: Any, inputs: Mapping[str, Tensor]) -> Model:
    model(**inputs)
    return model
