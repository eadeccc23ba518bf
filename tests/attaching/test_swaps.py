"""Adapters of mixed ranks take turns in a compiled UNet, with another strength at each step."""

import copy

import torch
from torch import nn
from torch._dynamo.utils import counters

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import FAMILIES, random_adapter
from tests.zoo.diffusers_models import _sd15, _sd15_inputs

LOCON = next(family for family in FAMILIES if family.name == "locon")


def adapters(model: nn.Module, rank: int) -> AdapterSet:
    rng, entries = torch.Generator().manual_seed(rank), []
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            shape = tuple(module.weight.shape)
            made = random_adapter(LOCON, shape, rank=rank, alpha=rank + 1.0, dtype=torch.float64, generator=rng)
            small = {field: factor * 0.1 for field, factor in made.factors().items()}
            entries.append(Entry(path, "weight", made.with_factors(small), (path,)))
    return AdapterSet(tuple(entries), f"rank {rank}")


@torch.no_grad()
def test_a_unet_is_compiled_once_for_all_adapters_and_strengths() -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    plain = _sd15().double().eval().requires_grad_(False)
    given = {k: v.double() if v.is_floating_point() else v for k, v in _sd15_inputs(0).items()}
    model, sets = copy.deepcopy(plain), [adapters(plain, rank) for rank in (2, 5, 1, 4)]
    attached = lyc_fx.attach(model, sets[0], 0.0, rank=5)
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    torch.testing.assert_close(compiled(**given).sample, plain(**given).sample, rtol=1e-9, atol=1e-9)
    assert len(sets[0].entries) > 50
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, made in enumerate(sets):
            attached.set(made, 0.3 + number)
            for strength in (0.7, -0.4 - number):
                attached.set_strengths(strength)
                found = compiled(**given).sample
            merged = copy.deepcopy(plain)
            lyc_fx.merge(merged, made, strength)
            wanted = merged(**given).sample
            assert not torch.allclose(wanted, plain(**given).sample, rtol=1e-3)
            torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)
    assert not counters["stats"] and not counters["graph_break"]
