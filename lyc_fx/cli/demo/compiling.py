"""torch.compile, also on a machine without a C++ compiler."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from lyc_fx.cli.demo.search import Model


@torch.no_grad()
def compiled(gm: GraphModule, inputs: Mapping[str, Tensor]) -> tuple[Model, str]:
    """The compiled program, after a first run, and the backend. Inductor needs a C++ compiler and Python's headers."""
    try:
        return _ran(torch.compile(gm, fullgraph=True, dynamic=True), inputs), "inductor"
    except RuntimeError as error:
        torch.compiler.reset()
        reason = str(error).strip().partition("\n")[0]
        model = _ran(torch.compile(gm, fullgraph=True, dynamic=True, backend="aot_eager"), inputs)
        return model, f"aot_eager, as inductor cannot build here ({reason})"


def _ran(model: Any, inputs: Mapping[str, Tensor]) -> Model:
    model(**inputs)
    return model
