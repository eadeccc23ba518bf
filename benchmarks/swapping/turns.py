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
    prepared = [attached.prepare(made, 0.3 + number / 10) for number, (_, made) in enumerate(sets)]
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, (own, made) in enumerate(sets):
            change = seconds(lambda: attached.set(made, 0.3 + number / 10), device)  # noqa: B023  # called at once
            wanted = compiled(**given)[0]
            floor = (size_of(made) + held(model)) / bandwidth(device)
            swaps, changes, calls, results = [], [], [], list[Tensor]()
            for step in range(steps):
                attached.swap(prepared[number - 1])
                compiled(**given)
                swaps.append(seconds(lambda: attached.swap(prepared[number]), device))  # noqa: B023
                if not step and not torch.equal(compiled(**given)[0], wanted):
                    raise SystemExit("a prepared swap has another result than set")
                strength = 1.1 - 2 * step / steps
                changes.append(seconds(lambda: attached.set_strengths(strength), device))  # noqa: B023
                calls.append(seconds(lambda: results.append(compiled(**given)[0]), device))  # noqa: B023
                results = results[-2:]
                if len(results) == 2 and torch.equal(*results):
                    raise SystemExit("another strength has the same result")
            yield (
                {"adapter": number, "rank": own, "set, ms": f"{1e3 * change:.1f}"}
                | {"swap, ms": f"{1e3 * min(swaps):.2f}", "floor, ms": f"{1e3 * floor:.2f}"}
                | {"ratio": f"{min(swaps) / floor:.2f}", "set_strengths, ms": f"{1e3 * median(changes):.1f}"}
                | {"step, ms": f"{1e3 * median(calls):.1f}", "recompiles": counters["stats"]["unique_graphs"] - graphs}
            )


def held(model: nn.Module) -> int:
    """Bytes of all that adapted layers hold beside their weights."""
    return sum(tensor.nbytes for bank in model.modules() if isinstance(bank, Bank) for tensor in bank.buffers())


def size_of(made: lyc_fx.AdapterSet) -> int:
    return sum(factor.nbytes for entry in made.entries for factor in entry.adapter.factors().values())
