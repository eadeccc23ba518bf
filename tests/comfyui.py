"""What ComfyUI computes at strength 1 from the tensors of one module, written out by hand in float64.

Its rules are those of 2025-10 (`comfy/lora.py`, `comfy/weight_adapter`), read for their behaviour. Raises where
ComfyUI logs an error and goes on without the module.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

Factors = Mapping[str, Tensor]


def patched(tensors: Factors, weight: Tensor) -> Tensor:
    """The weight with the patch that ComfyUI finds last, as its loader lets a later kind replace an earlier one."""
    f = {suffix: tensor.double() for suffix, tensor in tensors.items()}
    if "set_weight" in f:
        return f["set_weight"]
    if "diff" in f or "w_norm" in f:
        difference = f.get("diff", f.get("w_norm"))
        assert difference is not None
        return weight + difference if difference.shape == weight.shape else weight
    alpha = f["alpha"].item() if "alpha" in f else None
    if "a1.weight" in f:
        return _glora(f, weight, alpha)
    if "oft_blocks" in f:
        return (_oft if f["oft_blocks"].dim() == 3 else _boft)(f, weight, alpha)
    product, rank = next(make(f) for suffix, make in _PRODUCTS.items() if suffix in f)
    delta = product.reshape(weight.shape) * (1.0 if alpha is None or rank is None else alpha / rank)
    return weight + delta if "dora_scale" not in f else _dora(weight, delta, f["dora_scale"])


def _lora(f: Factors) -> tuple[Tensor, int]:
    up, down = f["lora_up.weight"].flatten(1), f["lora_down.weight"]
    rank = down.shape[0]
    if "lora_mid.weight" in f:
        mid = f["lora_mid.weight"]
        spread = down.transpose(0, 1).flatten(1) @ mid.transpose(0, 1).flatten(1)
        down = spread.reshape(down.shape[1], rank, mid.shape[2], mid.shape[3]).transpose(0, 1)
    return up @ down.flatten(1), rank


def _loha(f: Factors) -> tuple[Tensor, int]:
    sides = []
    for side in "12":
        a, b = f[f"hada_w{side}_a"], f[f"hada_w{side}_b"]
        core = f.get(f"hada_t{side}")
        sides.append(torch.mm(a, b) if core is None else torch.einsum("pqhw,po,qi->oihw", core, a, b))
    return sides[0] * sides[1], f["hada_w1_b"].shape[0]


def _lokr(f: Factors) -> tuple[Tensor, int | None]:
    rank = next((f[key].shape[0] for key in ("lokr_w2_b", "lokr_w1_b") if key in f), None)
    w1 = f["lokr_w1"] if "lokr_w1" in f else torch.mm(f["lokr_w1_a"], f["lokr_w1_b"])
    if "lokr_w2" in f:
        w2 = f["lokr_w2"]
    elif "lokr_t2" in f:
        w2 = torch.einsum("pqhw,qn,pk->knhw", f["lokr_t2"], f["lokr_w2_b"], f["lokr_w2_a"])
    else:
        w2 = torch.mm(f["lokr_w2_a"], f["lokr_w2_b"])
    return torch.kron(w1[:, :, None, None] if w2.dim() == 4 else w1, w2), rank


def _dora(weight: Tensor, delta: Tensor, magnitude: Tensor) -> Tensor:
    per_output = magnitude.shape[0] == weight.shape[0]
    measured = weight if per_output else weight + delta
    norms = [n.norm() for n in (measured if per_output else measured.transpose(0, 1))]
    shape = [-1, *[1] * (weight.dim() - 1)] if per_output else [1, -1, *[1] * (weight.dim() - 2)]
    return (weight + delta) * (magnitude / torch.stack(norms).reshape(shape))


def _glora(f: Factors, weight: Tensor, alpha: float | None) -> Tensor:
    a1, a2, b1, b2 = (f[f"{name}.weight"] for name in ("a1", "a2", "b1", "b2"))
    old = b2.shape[1] == b1.shape[0] == a1.shape[0] == a2.shape[1]
    new = b2.shape[0] == b1.shape[1] == a1.shape[1] == a2.shape[0]
    old = old and (not new or a2.shape[0] == weight.shape[0] == weight.shape[1])
    scale = 1.0 if alpha is None else alpha / (a1.shape[0] if old else a2.shape[0])
    a1, a2, b1, b2 = (t.flatten(1) for t in (a1, a2, b1, b2))
    if old:
        return weight + scale * (b2 @ b1 + weight.flatten(1) @ a2 @ a1).reshape(weight.shape)
    mixed = torch.einsum("oi...,ir,rj->oj...", weight, a1, a2)
    return weight + scale * (mixed + (b1 @ b2).reshape(weight.shape))


def _rotations(blocks: Tensor, alpha: float) -> Tensor:
    skew = blocks - blocks.transpose(-1, -2)
    norm = skew.norm() + 1e-8
    skew = skew * (alpha / norm) if alpha > 0 and norm > alpha else skew
    identity = torch.eye(blocks.shape[-1], dtype=torch.float64)
    return (identity + skew) @ torch.linalg.inv(identity - skew)


def _oft(f: Factors, weight: Tensor, alpha: float | None) -> Tensor:
    rotations = _rotations(f["oft_blocks"], alpha or 0.0)  # `rescale` is read, and not used
    return (torch.block_diag(*rotations).t() @ weight.flatten(1)).reshape(weight.shape)


def _boft(f: Factors, weight: Tensor, alpha: float | None) -> Tensor:
    if alpha is None:
        raise TypeError("'>' not supported between instances of 'NoneType' and 'int'")
    rows, half = weight, f["oft_blocks"].shape[-1] // 2
    for stage, rotations in enumerate(_rotations(f["oft_blocks"], alpha)):
        paired = rows.unflatten(0, (-1, 2, 2**stage * half)).transpose(1, 2).flatten(0, 2)
        turned = (torch.block_diag(*rotations) @ paired.flatten(1)).reshape(weight.shape)
        rows = turned.unflatten(0, (-1, 2**stage * half, 2)).transpose(1, 2).flatten(0, 2)
    return rows * f["rescale"] if "rescale" in f else rows


_PRODUCTS = {"lora_up.weight": _lora, "hada_w1_a": _loha, "lokr_w2": _lokr, "lokr_w2_a": _lokr}
