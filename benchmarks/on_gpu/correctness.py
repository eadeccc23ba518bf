"""Every family on every road, in float64, against the closed formula on the CPU."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

import lyc_fx
from tests.nets import CASES, Case, Variant, certain, one, pairs
from tests.oracle import adapted

STRENGTH = 0.7
NEAR = 1e-9
"""The largest difference in an output, relative to its largest value: a GPU sums in another order"""
ROADS = ("merged", "live", "spliced", "folded", "lowered", "exchanged", "attached", "resident")


def rows(device: torch.device, *, small: bool) -> Iterator[dict[str, object]]:
    """A row for each family: its layers and variants, and the largest difference on each road."""
    chosen = pairs(CASES[:2] if small else CASES)
    families = list(dict.fromkeys(variant[0].name for variant, _ in chosen))[: 3 if small else None]
    for name in families:
        own = [(variant, case) for variant, case in chosen if variant[0].name == name]
        worst = dict.fromkeys(ROADS, 0.0)
        for variant, case in own:
            for road, difference in differences(variant, case, device).items():
                worst[road] = max(worst[road], difference)
        verdict = "right" if max(worst.values()) < NEAR else "WRONG"
        cells = {road: f"{value:.0e}" for road, value in worst.items()}
        yield {"family": name, "layers": len(own)} | cells | {"verdict": verdict}


def differences(variant: Variant, case: Case, device: torch.device) -> dict[str, float]:
    first, second = (one(certain(variant, case.logical, seed=seed)) for seed in (0, 1))
    plain, x = case.net(), case.x()
    wanted = exact(plain, case, second, x).to(device)
    model, x = plain.to(device), x.to(device)
    merged = copy.deepcopy(model)
    lyc_fx.merge(merged, second, STRENGTH)
    found = {"merged": merged(x)}
    with lyc_fx.live(model) as live:
        live.set({second: STRENGTH})
        found["live"] = model(x)
    program = lyc_fx.capture(model, (x,), dynamic_shapes={"x": case.dims})
    spliced = lyc_fx.splice(program, second, STRENGTH)
    found |= {"spliced": spliced(x), "folded": lyc_fx.fold(spliced)(x), "lowered": lyc_fx.lower(spliced)(x)}
    exchanged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, first, 0.3, rank=3)))
    lyc_fx.exchange(exchanged, second, STRENGTH)
    found["exchanged"] = exchanged(x)
    for road in () if case.transposed else ("attached", "resident"):  # a class of the tests, unknown as a module
        with lyc_fx.attach(model, first, 0.3, rank=3, resident=road == "resident") as attached:
            attached.set(second, 0.1)
            attached.set_strengths(STRENGTH)
            found[road] = model(x)
    return {road: ((y - wanted).abs().max() / wanted.abs().max()).item() for road, y in found.items()}


def exact(model: nn.Module, case: Case, adapters: lyc_fx.AdapterSet, x: Tensor) -> Tensor:
    """What the model computes with the weight of the closed formula."""
    model = copy.deepcopy(model)
    weight = model.layer.weight
    [entry] = adapters.entries
    value = adapted(entry.adapter, weight.t() if case.transposed else weight, STRENGTH)
    weight.data = value.t().contiguous() if case.transposed else value
    return model(x).detach()
