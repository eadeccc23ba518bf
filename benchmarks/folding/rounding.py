"""Is the output the correctly rounded result? The formulas again, by hand, in float64, on rows of every layer.

Nothing of lyc-fx is used here: the adapter's factors and the base are read with safetensors.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

Factors = dict[str, Tensor]
_EPSILON = 2.0**-23
"""DoRA in LyCORIS adds it to the norm."""


@dataclass
class Check:
    elements: int = 0
    exact: int = 0
    worst: int = 0
    """Largest distance in units in the last place"""
    layers: int = 0
    changed: int = 0
    """Elements that the adapter changes at all"""
    touched: int = 0
    """Tensors without an adapter that are not, bit for bit, those of the base"""

    @property
    def share(self) -> float:
        return self.exact / self.elements

    def add(self, got: Tensor, exact: Tensor, base: Tensor) -> None:
        wanted = rounded(exact)
        steps = (_place(got) - _place(wanted)).abs()
        self.elements += steps.numel()
        self.exact += int((steps == 0).sum())
        self.worst = max(self.worst, int(steps.max()))
        self.changed += int((wanted != base).sum())
        self.layers += 1


def check(base: Path, adapter: Path, out: Path, rows: int) -> Check:
    """At most this many random rows of each layer with an adapter; the other tensors whole."""
    with safe_open(base, "pt") as before, safe_open(adapter, "pt") as factors, safe_open(out, "pt") as after:
        keys: dict[str, list[str]] = {}
        for key in factors.keys():
            keys.setdefault(key.partition(".")[0], []).append(key)
        found = Check()
        generator = torch.Generator().manual_seed(2)
        if set(before.keys()) != set(after.keys()):
            raise ValueError(f"{out}: not the keys of the base")
        for name in before.keys():
            layer = "lycoris_" + name.removesuffix(".weight").replace(".", "_")
            if layer not in keys or not name.endswith(".weight"):
                found.touched += not torch.equal(before.get_tensor(name), after.get_tensor(name))
                continue
            chosen = torch.randperm(before.get_slice(name).get_shape()[0], generator=generator)[:rows]
            weight, got = (_rows(file, name, chosen) for file in (before, after))
            taken = {key.partition(".")[2]: factors.get_tensor(key).double() for key in keys.pop(layer)}
            found.add(got, merged(weight.double(), taken, chosen), weight)
        if keys:
            raise ValueError(f"{adapter}: no weight for {', '.join(keys)}")
    return found


def _rows(file: Any, name: str, rows: Tensor) -> Tensor:
    return file.get_tensor(name)[rows]


def merged(weight: Tensor, factors: Factors, rows: Tensor) -> Tensor:
    """These rows of the merged weight."""
    result = weight + change(factors, rows).reshape(weight.shape)
    if "dora_scale" in factors:
        ones = [1] * (weight.dim() - 1)
        norm = result.flatten(1).norm(dim=1).reshape(-1, *ones) + _EPSILON
        result = result * (factors["dora_scale"].reshape(-1, *ones)[rows] / norm)
    return result


def change(f: Factors, rows: Tensor) -> Tensor:
    """These rows of ΔW, for the layouts that this benchmark makes."""
    if "lora_up.weight" in f:
        up, down = f["lora_up.weight"].flatten(1)[rows], f["lora_down.weight"].flatten(1)
        scale = f["alpha"] / len(down)
        if "lora_mid.weight" in f:
            return scale * torch.einsum("op,pqxy,qi->oixy", up, f["lora_mid.weight"], down)
        return scale * (up @ down)
    if "hada_w1_a" in f:
        scale = f["alpha"] / len(f["hada_w1_b"])
        left, right = (f[f"hada_w{i}_a"][rows] @ f[f"hada_w{i}_b"].flatten(1) for i in (1, 2))
        return scale * left * right
    if "lokr_w2" in f:  # both full: alpha has no meaning
        w2, scale = f["lokr_w2"].flatten(1), torch.ones(())
    else:
        w2, scale = f["lokr_w2_a"] @ f["lokr_w2_b"].flatten(1), f["alpha"] / len(f["lokr_w2_b"])
    pairs = f["lokr_w1"][rows // len(w2)][:, :, None] * w2[rows % len(w2)][:, None, :]
    return scale * pairs.flatten(1)


def rounded(exact: Tensor) -> Tensor:
    """float64 to the nearest bfloat16, ties to even, once; torch's own cast goes through float32, so rounds twice.

    It cuts 45 of 52 bits of the significand, which is right from 2⁻¹²⁶ up; nothing here is that small and not 0.
    """
    bits = exact.contiguous().view(torch.int64)
    bits = bits + ((1 << 44) - 1) + ((bits >> 45) & 1)
    return (bits >> 45 << 45).view(torch.float64).bfloat16()


def _place(values: Tensor) -> Tensor:
    """Neighbouring bfloat16 numbers as neighbouring integers."""
    bits = values.contiguous().view(torch.int16).int()
    return torch.where(bits < 0, -(bits & 0x7FFF), bits)
