"""Adapters that take turns in a compiled model: seconds for each, and whether anything is compiled again."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import lyc_fx
from lyc_fx.attaching.bank import Bank
from swapping.clock import bandwidth, seconds

Row = dict[str, object]


@torch.no_grad()
def turns(
    model: nn.Module,
    given: Mapping[str, Any],
    sets: Sequence[tuple[int, lyc_fx.AdapterSet]],
    *,
    rank: int,
    steps: int,
    backend: str,
) -> Iterator[Row]:
    """A row for each adapter, given with its rank. Raises torch's error for a graph break, and for a recompile."""
    device = next(model.parameters()).device
    attached = lyc_fx.attach(model, sets[0][1], 0.0, rank=rank)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend=backend)
    compiled(**given)
    graphs = counters["stats"]["unique_graphs"]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, (own, made) in enumerate(sets):
            swap = seconds(lambda: attached.set(made, 0.3 + number / 10), device)  # noqa: B023  # called at once
            floor = (size_of(made) + held(model)) / bandwidth(device)
            changes, calls, results = [], [], list[Tensor]()
            for step in range(steps):
                strength = 1.1 - 2 * step / steps
                changes.append(seconds(lambda: attached.set_strengths(strength), device))  # noqa: B023
                calls.append(seconds(lambda: results.append(compiled(**given)[0]), device))  # noqa: B023
                results = results[-2:]
                if len(results) == 2 and torch.equal(*results):
                    raise SystemExit("another strength has the same result")
            yield (
                {"adapter": number, "rank": own, "set, ms": f"{1e3 * swap:.1f}", "floor, ms": f"{1e3 * floor:.2f}"}
                | {"ratio": f"{swap / floor:.1f}", "set_strengths, ms": f"{1e3 * median(changes):.1f}"}
                | {"step, ms": f"{1e3 * median(calls):.1f}", "recompiles": counters["stats"]["unique_graphs"] - graphs}
            )


def held(model: nn.Module) -> int:
    """Bytes of all that adapted layers hold beside their weights."""
    return sum(tensor.nbytes for bank in model.modules() if isinstance(bank, Bank) for tensor in bank.buffers())


def size_of(made: lyc_fx.AdapterSet) -> int:
    return sum(factor.nbytes for entry in made.entries for factor in entry.adapter.factors().values())
