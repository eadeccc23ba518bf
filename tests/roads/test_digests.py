"""The merged bytes of every family, variant, layer kind and 16-bit dtype, as they were when this was recorded.

The closed formulas of `oracle.py` say what is right; this says that nothing moved, not by a bit. A family that is new
has no digest yet: the failure prints it.
"""

from hashlib import sha256

import pytest
import torch
from nets import CASES, VARIANTS, Variant, certain, one, pairs, variant_id

import lyc_fx

EXPERTS = (3, 5, 4)
"""The shape of a weight for the family that none of the layers has"""
RECORDED: dict[str, str] = {
    "boft(blocks)": "bbe976ac7b6c4102",
    "boft(blocks,rescale)": "4b010cb4c7502935",
    "boft-input(blocks,gain)": "62ae3dcbbab897ba",
    "experts(up,down)": "e7730100c7e524db",
    "full(diff)": "b5fd584cee7aca2c",
    "gain(gain)": "89e65b6d1bba785e",
    "glora(a1,a2,b1,b2)": "bfb4f681fa7ad25c",
    "ia3(weight)": "0576d93b4f9410de",
    "locon(up,down)": "751a6acb7edabe51",
    "locon(up,down,mid)": "d2615b77768c05a1",
    "locon(up,down,magnitude)": "9c1c10bb14328882",
    "locon(up,down,mid,magnitude)": "a3d39e5973a69a1b",
    "loha(w1_a,w1_b,w2_a,w2_b)": "501c051832876e45",
    "loha(w1_a,w1_b,w2_a,w2_b,t1,t2)": "7f11975e49125cf6",
    "loha(w1_a,w1_b,w2_a,w2_b,magnitude)": "b50535b1a1bd7dc1",
    "loha(w1_a,w1_b,w2_a,w2_b,t1,t2,magnitude)": "d9d39cb8dc751f9e",
    "lokr(w1,w2)": "810ca5667937fd57",
    "lokr(w1,w2_a,w2_b)": "4c5b5acc0c35ef0e",
    "lokr(w1,w2_a,w2_b,t2)": "610c485282c7ea0b",
    "lokr(w1_a,w1_b,w2)": "5c7e512c6820411a",
    "lokr(w1_a,w1_b,w2_a,w2_b)": "03d55c2c4413a98a",
    "lokr(w1_a,w1_b,w2_a,w2_b,t2)": "5ee2a828be8f942f",
    "lokr(w1,w2,magnitude)": "e7b24ef9398528d7",
    "lokr(w1,w2_a,w2_b,magnitude)": "d2676461d6041060",
    "lokr(w1,w2_a,w2_b,t2,magnitude)": "f9e5e3236fa31d1b",
    "lokr(w1_a,w1_b,w2,magnitude)": "5892fa5ca300dd8a",
    "lokr(w1_a,w1_b,w2_a,w2_b,magnitude)": "9fb30b72ff17e173",
    "lokr(w1_a,w1_b,w2_a,w2_b,t2,magnitude)": "01d68aa7980c091f",
    "norm(difference)": "c28bd21699592a7b",
    "diag-oft(blocks)": "18855069be21eb19",
    "diag-oft(blocks,rescale)": "ac0f39945f22670a",
    "oft-input(blocks)": "93bca0e27dfad38d",
    "replace(value)": "62aa11fcfb1118ce",
    "tlora(q,p,lam)": "e1c5e2bae23c677f",
}


def digest(variant: Variant) -> str:
    """Over all layers that the variant exists for, both dtypes, both conventions and two strengths."""
    found = sha256()
    models = [(case.net, case.logical) for _, case in pairs(CASES, [variant])] or [(experts, EXPERTS)]
    for seed, (net, shape) in enumerate(models):
        adapter = certain(variant, shape, seed=seed)
        for dtype in (torch.bfloat16, torch.float16):
            for convention, strength in (("interpolate", 0.7), ("lycoris", 1.3)):
                model = net(dtype)
                base = torch.randn(model.layer.weight.shape, generator=rng(seed), dtype=torch.float64)
                model.layer.weight.data.copy_(base)  # float32 ones depend on the processor
                lyc_fx.merge(model, one(adapter), strength, convention=convention)
                found.update(model.layer.weight.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def experts(dtype: torch.dtype) -> torch.nn.Module:
    model = torch.nn.Module()
    model.layer = torch.nn.Module()
    model.layer.weight = torch.nn.Parameter(torch.zeros(EXPERTS, dtype=dtype))
    return model


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_merged_bytes_are_as_recorded(variant: Variant) -> None:
    assert digest(variant) == RECORDED.get(variant_id(variant))


def test_nothing_is_recorded_that_is_not_tried() -> None:
    assert set(RECORDED) == {variant_id(variant) for variant in VARIANTS}
