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
    "boft(blocks)": "d80c81b27abeb9be",
    "boft(blocks,rescale)": "a4efb215611d7938",
    "boft-input(blocks,gain)": "86a383173b129809",
    "experts(up,down)": "294c2ae2859fd1f9",
    "full(diff)": "97e2093597e99291",
    "gain(gain)": "a60ef3eeae15cda8",
    "glora(a1,a2,b1,b2)": "1e5f265d5b7e2a4d",
    "hra(u)": "eac4951f6e89d1a1",
    "ia3(weight)": "3475517e97fe5dbf",
    "locon(up,down)": "fc4c0a3c46e157eb",
    "locon(up,down,mid)": "d6383e33f4b80319",
    "locon(up,down,magnitude)": "d3b1681a47d13016",
    "locon(up,down,mid,magnitude)": "a61cbb1b126f4afc",
    "loha(w1_a,w1_b,w2_a,w2_b)": "2aae425234c41541",
    "loha(w1_a,w1_b,w2_a,w2_b,t1,t2)": "09ad47d1f24d7803",
    "loha(w1_a,w1_b,w2_a,w2_b,magnitude)": "70fb0089afeb2789",
    "loha(w1_a,w1_b,w2_a,w2_b,t1,t2,magnitude)": "34f8a64c7cc0bd00",
    "lokr(w1,w2)": "9a77800e19b88717",
    "lokr(w1,w2_a,w2_b)": "04818c4fe275d16f",
    "lokr(w1,w2_a,w2_b,t2)": "25d1e4ba9715d444",
    "lokr(w1_a,w1_b,w2)": "dba6c3d880b1ef3e",
    "lokr(w1_a,w1_b,w2_a,w2_b)": "8a4df204fc4e631b",
    "lokr(w1_a,w1_b,w2_a,w2_b,t2)": "f9e14dcd35621be7",
    "lokr(w1,w2,magnitude)": "cf443fd1a8d39ba7",
    "lokr(w1,w2_a,w2_b,magnitude)": "c4280077cee8c8ee",
    "lokr(w1,w2_a,w2_b,t2,magnitude)": "fcbb30558cf738de",
    "lokr(w1_a,w1_b,w2,magnitude)": "2f8644ab82892f78",
    "lokr(w1_a,w1_b,w2_a,w2_b,magnitude)": "93fe3e3ac2dc804a",
    "lokr(w1_a,w1_b,w2_a,w2_b,t2,magnitude)": "e157fcaa456e4b65",
    "norm(difference)": "594e4b8cbb40518b",
    "diag-oft(blocks)": "1bf43a46d3aa3652",
    "diag-oft(blocks,rescale)": "aadef9d628dafdb3",
    "oft-input(blocks)": "f680f5a0554dca56",
    "replace(value)": "3922eed73279708f",
    "tlora(q,p,lam)": "d94803700e9cf0bf",
    "vera(a,b,lambda_b,lambda_d)": "3540d2abd01ad9bc",
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
                base = torch.randn(model.layer.weight.shape, generator=rng(1000 + seed), dtype=torch.float64)
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
