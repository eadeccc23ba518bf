"""Running the three roads on the same adapter, and comparing their results."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import LycFxError


@final
@dataclass(frozen=True)
class Graphs:
    """The programs of the graph road, one for each step."""

    captured: GraphModule
    spliced: GraphModule
    lowered: GraphModule
    folded: GraphModule

    @classmethod
    def of(cls, model: nn.Module, inputs: Mapping[str, Tensor], adapters: AdapterSet) -> Self:
        """Capture with dynamic batch and sequence sizes, splice, lower, fold."""
        captured = lyc_fx.capture(model, (), inputs, dynamic_shapes=dict.fromkeys(inputs, "batch sequence"))
        spliced = lyc_fx.splice(captured, adapters)
        return cls(captured, spliced, lyc_fx.lower(spliced), lyc_fx.fold(spliced))

    def steps(self) -> dict[str, GraphModule]:
        """Return the programs by name, in the order of the steps."""
        return vars(self)


def weight_differences(
    folded: GraphModule, checkpoint: Path, model: nn.Module, adapters: AdapterSet
) -> dict[str, float]:
    """Return the largest difference of any weight between the folded graph, the folded checkpoint and a merged model.

    `model` is left unchanged.
    """
    live = deepcopy(model)
    lyc_fx.merge(live, adapters)
    graph, stored, merged = folded.state_dict(), load_file(checkpoint), live.state_dict()
    return {
        "graph and checkpoint": _largest_difference(graph, stored),
        "graph and live model": _largest_difference(graph, merged),
        "checkpoint and live model": _largest_difference(merged, stored),
    }


def _largest_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest difference of any tensor in `one`.

    The checkpoint (`other`) may have more: constant tables that today's transformers does not store.
    """
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


@torch.no_grad()
def reference_differences(model: nn.Module, adapter: Path, expected: Path, folder: Path) -> dict[str, float]:
    """Return how far each road's hidden states are from those of LyCORIS's own forward, all in float64.

    `model` is left unchanged; a float64 copy of its weights is written to `folder`.
    """
    tensors = load_file(expected)
    wanted = tensors.pop("last_hidden_state")
    adapters = lyc_fx.load(adapter)
    base, live, stored = (deepcopy(model).double() for _ in range(3))
    programs: dict[str, Any] = {}
    graphs = Graphs.of(base, tensors, adapters)
    programs |= {f"graph, {name}": graph for name, graph in graphs.steps().items() if name != "captured"}
    before, after = folder / "base64.safetensors", folder / "merged64.safetensors"
    save_file(base.state_dict(), before)
    lyc_fx.fold_checkpoint(before, adapters, after)
    stored.load_state_dict(load_file(after))
    programs["checkpoint"] = stored
    lyc_fx.merge(live, adapters)
    programs["live model"] = live
    return {
        name: float((program(**tensors).last_hidden_state - wanted).abs().max()) for name, program in programs.items()
    }


def require_close(differences: Mapping[str, float], bound: float, what: str) -> None:
    """Raise LycFxError if a difference exceeds the bound, or is NaN."""
    wrong = [f"{name} {value:.3g}" for name, value in differences.items() if not value <= bound]
    if wrong:
        raise LycFxError(f"{what} differ by more than {bound:g}: {', '.join(wrong)}")
