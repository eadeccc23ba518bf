"""The closed formulas, written out by hand in float64, apart from the library's code.

Factors come by their key suffix in a LyCORIS file. Sums are spelt out by einsum over (out o, in i, kernel κ
flattened as k); rotations are built as dense matrices, row by row.
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
from oracle_rotations import boft, boft_input, hra, oft, oft_input
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter

Factors = Mapping[str, Tensor]


def factors_of(adapter: Adapter) -> dict[str, Tensor]:
    return {adapter.suffixes[n]: f.detach().double() for n, f in adapter.factors().items()}


def delta(adapter: Adapter, shape: tuple[int, ...]) -> Tensor:
    """ΔW of an additive adapter at strength 1, in float64, from its factors alone."""
    return ADDITIVE[adapter.name](factors_of(adapter), adapter.alpha, shape).reshape(shape)


def adapted(adapter: Adapter, weight: Tensor, strength: float) -> Tensor:
    """W' in float64: what every road must give before it rounds."""
    base, factors, alpha = weight.detach().double(), factors_of(adapter), adapter.alpha
    if adapter.name in BASED:
        numbers = {suffix: getattr(adapter, field) for field, suffix in adapter.scalars.items()}
        return BASED[adapter.name](base, factors | numbers, alpha, strength).reshape(base.shape)
    change = delta(adapter, tuple(base.shape))
    if "dora_scale" not in factors:
        return base + strength * change
    return base + strength * (_dora(base + change, factors["dora_scale"]) - base)


def kept(base: Tensor, exact: Tensor, stored: Tensor) -> float:
    """⟨stored - base, Δ⟩ / ⟨Δ, Δ⟩ with Δ = exact - base."""
    change = exact.double() - base.double()
    return float(((stored.double() - base.double()) * change).sum() / change.square().sum())


def _dora(merged: Tensor, magnitude: Tensor) -> Tensor:
    columns = magnitude.dim() == merged.dim() and magnitude.shape[0] == 1 and magnitude.shape[1] == merged.shape[1]
    spread = merged.transpose(0, 1) if columns and magnitude.numel() != merged.shape[0] else merged
    rows = [
        row * m / (row.square().sum().sqrt() + 2.0**-23) for row, m in zip(spread, magnitude.flatten(), strict=True)
    ]
    result = torch.stack(rows)
    return result.transpose(0, 1) if spread is not merged else result


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


def _full(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    return f["diff"]


def _norm(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    return f["w_norm"]


def _ia3(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    factor, result = f["weight"].flatten(), w.clone()
    inner, per_group = w.shape[1], w.shape[0] * w.shape[1] // factor.numel()
    for o in range(w.shape[0]):
        for i in range(inner):
            group = o // per_group if f["on_input"] else 0
            result[o, i] *= 1 + strength * factor[group * inner + i if f["on_input"] else o]
    return result


def _glora(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    a1, a2, b1, b2 = (f[f"{name}.weight"].flatten(1) for name in ("a1", "a2", "b1", "b2"))
    scale = 1.0 if not alpha else alpha / a1.shape[1]
    mixed = torch.einsum("oik,ir,rj->ojk", w.flatten(2) if w.dim() > 2 else w.unsqueeze(-1), a1, a2)
    return w + strength * scale * (mixed.reshape(w.shape) + torch.einsum("or,rc->oc", b1, b2).reshape(w.shape))


def _tlora(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    q, p, lam = f["q_layer.weight"].flatten(1), f["p_layer.weight"].flatten(1), f["lambda_layer"].flatten()
    rank, base = len(lam), w.flatten(1)
    values, vectors = torch.linalg.eigh(base.t() @ base)  # the right singular vectors, apart from signs
    top = vectors[:, values.argsort(descending=True)[:rank]]
    change = torch.einsum("or,r,ri->oi", p, lam, q) - base @ top @ top.t()
    return w + (strength * (1.0 if not alpha else alpha / rank) * change).reshape(w.shape)


def _experts(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    up, down = f["experts_up"], f["experts_down"]
    order = "eoi" if tuple(shape[1:]) == (up.shape[1], down.shape[2]) else "eio"
    return (alpha / up.shape[2] if alpha else 1.0) * torch.einsum(f"eor,eri->{order}", up, down)


def _replace(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    return w + strength * (f["set_weight"] - w)


def _gain(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    return w + strength * f["gain"] * w


def _vera(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    a, b = f["vera_A"], f["vera_B"]
    return torch.einsum("o,or,r,rk->ok", f["vera_lambda_b"], b, f["vera_lambda_d"], a).reshape(shape)


ADDITIVE: dict[str, Callable[[Factors, float | None, tuple[int, ...]], Tensor]] = {
    "locon": _locon,
    "loha": _loha,
    "lokr": _lokr,
    "full": _full,
    "norm": _norm,
    "experts": _experts,
    "vera": _vera,
}
BASED: dict[str, Callable[[Tensor, Factors, float | None, float], Tensor]] = {
    "ia3": _ia3,
    "glora": _glora,
    "diag-oft": oft,
    "boft": boft,
    "tlora": _tlora,
    "replace": _replace,
    "gain": _gain,
    "oft-input": oft_input,
    "boft-input": boft_input,
    "hra": hra,
}
