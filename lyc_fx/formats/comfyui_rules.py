"""What ComfyUI makes of a module's tensors where that differs from LyCORIS, and the tensors that it reads right.

Its rules, as of 2025-10: `comfy/lora.py`, `comfy/weight_adapter/*.py` (read for their behaviour alone).
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algebra.tensors import matrix, tucker
from lyc_fx.algorithms.boft import BOFT
from lyc_fx.algorithms.glora import GLoRA
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.algorithms.oft import DiagOFT
from lyc_fx.errors import Unsupported

_READ = {
    *("alpha", "dora_scale", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "oft_blocks", "rescale"),
    *(f"lora_{name}.weight" for name in ("up", "down", "mid")),
    *(f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")),
    *(f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")),
    *(f"{name}.weight" for name in ("a1", "a2", "b1", "b2")),
}
"""The suffixes after a module's path that ComfyUI looks for"""


def readable(adapter: Adapter, leaf: str) -> dict[str, Tensor]:
    """The adapter's tensors by suffix, as ComfyUI must find them. Raises Unsupported where there is no such form."""
    rewrite = _REWRITE.get(type(adapter))
    rewritten = adapter if rewrite is None else rewrite(adapter)
    tensors = rewritten.written(leaf)
    if not rewritten.alpha and not rewritten.alpha_bounds:
        tensors.pop("alpha", None)  # an alpha of 0 is a scale of 0 there, and 1 in LyCORIS; without alpha it is 1
    unknown = [suffix for suffix in tensors if suffix not in _READ]
    if unknown:
        raise Unsupported(f"ComfyUI reads no {', '.join(unknown)} ({adapter.name})")
    return {suffix: tensor.contiguous() for suffix, tensor in tensors.items()}


def _locon(adapter: LoCon) -> LoCon:
    """Cores of four dimensions whose ranks are equal; a magnitude in the weight's dimensions."""
    _expect_core(adapter.mid)
    if adapter.mid is not None and adapter.mid.shape[0] != adapter.mid.shape[1]:
        raise Unsupported(f"ComfyUI reads Tucker cores of equal ranks only, not {tuple(adapter.mid.shape)}")
    if adapter.magnitude is None or adapter.magnitude.dim() != 1:
        return adapter
    dims = max(adapter.down.dim(), 0 if adapter.mid is None else adapter.mid.dim())
    return replace(adapter, magnitude=adapter.magnitude.reshape(-1, *(1 for _ in range(dims - 1))))


def _loha(adapter: LoHa) -> LoHa:
    """Cores of four dimensions; all else as matrices."""
    _expect_core(adapter.t1)
    _expect_magnitude(adapter.magnitude)
    return _flat(adapter, "w1_a", "w1_b", "w2_a", "w2_b")


def _lokr(adapter: LoKr) -> LoKr:
    """Without a core: multiplied out, as its product there fails in `torch.kron`. w2 of four dimensions, or as a
    matrix (the result is the same); all else as matrices.
    """
    _expect_magnitude(adapter.magnitude)
    plain = _without_core(adapter)
    left, right = plain.w1_b, plain.w2_b
    if left is not None and right is not None and left.shape[0] != right.shape[0]:
        raise Unsupported(
            f"ComfyUI divides alpha by the rank of w2, {right.shape[0]}, and LyCORIS by that of w1, {left.shape[0]}"
        )
    flat = ["w1", "w1_a", "w1_b", "w2_a", "w2_b"]
    return _flat(plain, *flat, *(["w2"] if plain.w2 is not None and plain.w2.dim() != 4 else []))


def _without_core(adapter: LoKr) -> LoKr:
    """w2 as one factor, in float32 or wider. With a full w1 it takes up the scale, which is 1 from then on."""
    if adapter.t2 is None or adapter.w2_a is None or adapter.w2_b is None:
        return adapter
    core, left, right = (t.to(torch.float64) for t in (adapter.t2, adapter.w2_a, adapter.w2_b))
    scale, alpha = (1.0, adapter.alpha) if adapter.w1 is None else (adapter.scale, None)
    w2 = (tucker(core, left.t(), right) * scale).to(torch.promote_types(adapter.t2.dtype, torch.float32))
    return replace(adapter, w2=w2, w2_a=None, w2_b=None, t2=None, alpha=alpha)


def _glora(adapter: GLoRA) -> GLoRA:
    """The new orientation: the old one of a convolution fails there. What is square throughout is read as old."""
    a1, a2, b1, b2 = adapter.a1, adapter.a2, adapter.b1, adapter.b2
    if a1.shape[0] == a1.shape[1] == b1.shape[0] == b1.shape[1]:
        raise Unsupported(f"ComfyUI reads a GLoRA of rank = in = out = {a1.shape[0]} in its old orientation")
    return adapter.with_factors({"a1": a2, "a2": a1, "b1": b2, "b2": b1}) if adapter.variant else adapter


def _boft(adapter: BOFT) -> BOFT:
    """A bound of 0, which must be there, with the true one worked into the blocks."""
    if adapter.rescale is not None and adapter.rescale.dim() == 1:
        raise Unsupported(f"ComfyUI multiplies rows by a rescale of (out, 1…) only, not {tuple(adapter.rescale.shape)}")
    return replace(adapter, blocks=_bounded(adapter.blocks, adapter.alpha), alpha=0.0)


def _oft(adapter: DiagOFT) -> DiagOFT:
    """As BOFT, without a rescale: it is dropped there."""
    if adapter.rescale is not None:
        raise Unsupported("ComfyUI ignores the rescale of a Diag-OFT")
    return replace(adapter, blocks=_bounded(adapter.blocks, adapter.alpha), alpha=0.0)


def _bounded(blocks: Tensor, bound: float | None) -> Tensor:
    """Blocks whose `B - Bᵀ` is within `bound · out`: ComfyUI takes alpha for the whole bound. In the blocks' dtype."""
    wide = blocks.to(torch.float64)
    norm = float(torch.linalg.vector_norm(wide - wide.transpose(-1, -2))) + 1e-8
    limit = (bound or 0.0) * blocks.shape[-3] * blocks.shape[-2]
    return blocks if not bound or norm <= limit else (wide * (limit / norm)).to(blocks.dtype)


def _flat(adapter: Any, *names: str) -> Any:
    present = adapter.factors()
    return adapter.with_factors({name: matrix(present[name]) for name in names if name in present})


def _expect_core(core: Tensor | None) -> None:
    if core is not None and core.dim() != 4:
        raise Unsupported(f"ComfyUI reads Tucker cores of two kernel dimensions only, not {tuple(core.shape)}")


def _expect_magnitude(magnitude: Tensor | None) -> None:
    if magnitude is not None and magnitude.dim() == 1:
        raise Unsupported("ComfyUI multiplies columns by a dora_scale of one dimension; it needs (out, 1…)")


_REWRITE: dict[type[Adapter], Callable[[Any], Adapter]] = {
    LoCon: _locon,
    LoHa: _loha,
    LoKr: _lokr,
    GLoRA: _glora,
    BOFT: _boft,
    DiagOFT: _oft,
}
