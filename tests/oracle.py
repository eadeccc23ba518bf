"""The closed formulas, written out by hand in float64, apart from the library's code: ΔW before strength.

Factors come by their key suffix in a LyCORIS file. Each formula works on any kernel, with sums spelt out by
einsum over (out o, in i, kernel κ flattened as k).
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor

from lyc_fx.families import Adapter

Factors = Mapping[str, Tensor]


def delta(adapter: Adapter, shape: tuple[int, ...]) -> Tensor:
    """ΔW at strength 1, in float64, from the adapter's factors alone."""
    factors = {adapter.suffixes[n]: f.detach().double() for n, f in adapter.factors().items()}
    return ORACLES[adapter.name](factors, adapter.alpha, shape).reshape(shape)


def _locon(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    up, down = f["lora_up.weight"].flatten(1), f["lora_down.weight"]
    rank = down.shape[0]
    scale = 1.0 if not alpha else alpha / rank
    if "lora_mid.weight" in f:
        mid = f["lora_mid.weight"].flatten(2)
        return scale * torch.einsum("op,pqk,qi->oik", up, mid, down.flatten(1))
    return scale * torch.einsum("or,rik->oik", up, down.reshape(rank, shape[1], -1))


def _loha(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    scale = 1.0 if not alpha else alpha / f["hada_w1_b"].shape[0]
    sides = []
    for side in ("1", "2"):
        a, b = f[f"hada_w{side}_a"], f[f"hada_w{side}_b"]
        if f"hada_t{side}" in f:
            sides.append(torch.einsum("pqk,po,qi->oik", f[f"hada_t{side}"].flatten(2), a, b))
        else:
            sides.append(torch.einsum("or,rc->oc", a, b).reshape(shape[0], shape[1], -1))
    return scale * sides[0] * sides[1]


def _lokr(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    w1 = f["lokr_w1"] if "lokr_w1" in f else torch.einsum("lr,rm->lm", f["lokr_w1_a"], f["lokr_w1_b"])
    taps, n = prod(shape[2:]), shape[1] // w1.shape[1]
    if "lokr_w2" in f:
        w2 = f["lokr_w2"].flatten(2) if len(shape) > 2 else f["lokr_w2"].unsqueeze(-1)
    elif "lokr_t2" in f:
        w2 = torch.einsum("pqk,pa,qn->ank", f["lokr_t2"].flatten(2), f["lokr_w2_a"], f["lokr_w2_b"])
    else:
        w2 = torch.einsum("ar,rc->ac", f["lokr_w2_a"], f["lokr_w2_b"].flatten(1)).reshape(-1, n, taps)
    ranks = [f[key].shape[0] for key in ("lokr_w1_b", "lokr_w2_b") if key in f]
    scale = alpha / ranks[0] if alpha and ranks else 1.0
    return scale * torch.einsum("lm,ank->lamnk", w1, w2)


ORACLES: dict[str, Callable[[Factors, float | None, tuple[int, ...]], Tensor]] = {
    "locon": _locon,
    "loha": _loha,
    "lokr": _lokr,
}
