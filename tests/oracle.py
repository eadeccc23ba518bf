"""The closed formulas, written out by hand in float64, apart from the library's code.

Factors come by their key suffix in a LyCORIS file. Sums are spelt out by einsum over (out o, in i, kernel κ
flattened as k); rotations are built as dense matrices, row by row.
"""

from collections.abc import Callable, Mapping
from math import prod

import torch
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


def _rotations(blocks: Tensor, alpha: float | None, out: int, strength: float) -> list[Tensor]:
    """I + s (R - I) for each block, in the order of the flattened leading dimensions."""
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.square().sum().sqrt() + 1e-8
    if alpha and norm > alpha * out:
        skew = skew * (alpha * out / norm)
    identity = torch.eye(blocks.shape[-1], dtype=torch.float64)
    flat = skew.reshape(-1, *blocks.shape[-2:])
    return [identity + strength * ((identity + q) @ torch.linalg.inv(identity - q) - identity) for q in flat]


def _rescaled(w: Tensor, f: Factors, strength: float) -> Tensor:
    if "rescale" not in f:
        return w
    return torch.stack([row * (1 + strength * (r - 1)) for row, r in zip(w, f["rescale"].flatten(), strict=True)])


def _oft(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    dense = torch.block_diag(*(r.t() for r in _rotations(f["oft_blocks"], alpha, w.shape[0], strength)))
    return _rescaled((dense @ w.flatten(1)).reshape(w.shape), f, strength)


def _boft(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    stages, count, size, _ = f["oft_blocks"].shape
    rotations, rows = _rotations(f["oft_blocks"], alpha, w.shape[0], strength), w.flatten(1)
    for stage in range(stages):
        stride = 2**stage * size // 2
        # Row (c, g, k) of the weight stands at (c, k, g) among the rows that the blocks see.
        pairs = [(c, k) for c in range(len(w) // (2 * stride)) for k in range(stride)]
        order = [c * 2 * stride + g * stride + k for c, k in pairs for g in (0, 1)]
        turned = torch.block_diag(*rotations[stage * count : (stage + 1) * count]) @ rows[order]
        rows = torch.empty_like(rows)
        rows[order] = turned
    return _rescaled(rows.reshape(w.shape), f, strength)


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


def _oft_input(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    blocks, terms = f["oft_R"], int(f["oft_terms"])
    count, size, columns = len(blocks), blocks.shape[-1], w[0].numel()
    identity, turns = torch.eye(size, dtype=torch.float64), []
    for b in blocks:
        q = b - b.t()
        norm, bound = q.square().sum().sqrt(), (alpha or 0) / count**0.5
        q = q * (bound / norm) if alpha and norm > bound else q
        powers = [torch.linalg.matrix_power(q, k) for k in range(max(terms, 4))]
        if terms == 0:
            r = (identity - q) @ torch.linalg.inv(identity + q)
        elif terms < 3:
            r = identity + 2 * (terms - 1) * q
        else:
            last = max(terms - 1, 3)
            r = identity + 2 * sum(powers[1:last]) + powers[last]
        turns.append(identity + strength * (r - identity))
    dense = torch.block_diag(*(turns if count > 1 else turns * (columns // size)))
    return (w.flatten(1) @ dense.t()).reshape(w.shape)


def _boft_input(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    stages, _, size, _ = f["boft_R"].shape
    half, columns, identity = size // 2, w[0].numel(), torch.eye(size, dtype=torch.float64)
    product = torch.eye(columns, dtype=torch.float64)
    for stage in range(stages):
        blocks = []
        for b in f["boft_R"][stage]:
            q = 0.5 * (b - b.t())
            r = (identity - q) @ torch.linalg.inv(identity + q)
            blocks.append(identity + strength * (r - identity))
        order = list(range(columns))
        if stage:  # even chunks of half a block come before odd ones, in each group of 2^(stage + 1)
            span = 2 ** (stage + 1)
            order = [
                (group * span + chunk) * half + k
                for group in range(columns // (span * half))
                for chunk in (*range(0, span, 2), *range(1, span, 2))
                for k in range(half)
            ]
        permutation = torch.eye(columns, dtype=torch.float64)[order]
        product = permutation @ torch.block_diag(*blocks) @ permutation.t() @ product
    rows = (w.flatten(1) @ product.t()).reshape(w.shape)
    return torch.stack([row * (1 + strength * (g - 1)) for row, g in zip(rows, f["boft_s"].flatten(), strict=True)])


def _vera(f: Factors, alpha: float | None, shape: tuple[int, ...]) -> Tensor:
    a, b = f["vera_A"], f["vera_B"]
    return torch.einsum("o,or,r,rk->ok", f["vera_lambda_b"], b, f["vera_lambda_d"], a).reshape(shape)


def _hra(w: Tensor, f: Factors, alpha: float | None, strength: float) -> Tensor:
    columns = f["hra_u"].t()
    identity = product = torch.eye(columns.shape[1], dtype=torch.float64)
    before: list[Tensor] = []
    for column in columns:
        for other in before if f["hra_gs"] else ():
            column = column - (other @ column) * other
        unit = column / column.norm()
        before.append(unit)
        product = product @ (identity - 2 * torch.outer(unit, unit))
    return (w.flatten(1) @ (identity + strength * (product - identity))).reshape(w.shape)


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
    "diag-oft": _oft,
    "boft": _boft,
    "tlora": _tlora,
    "replace": _replace,
    "gain": _gain,
    "oft-input": _oft_input,
    "boft-input": _boft_input,
    "hra": _hra,
}
