"""Fold an adapter file into a checkpoint file, without any model code.

The same on the command line: lyc-fx fold base.safetensors adapter.safetensors@0.5 -o merged.safetensors
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import load_file, save_file

import lyc_fx

torch.manual_seed(0)
with TemporaryDirectory() as folder:
    base, adapter, merged = (Path(folder, f"{name}.safetensors") for name in ("base", "adapter", "merged"))
    save_file({"proj.weight": torch.randn(64, 32, dtype=torch.bfloat16), "proj.bias": torch.zeros(64)}, base)
    w1, w2_a, w2_b = torch.randn(4, 4), torch.randn(16, 2), torch.randn(2, 8)
    factors = {"lokr_w1": w1, "lokr_w2_a": w2_a, "lokr_w2_b": w2_b, "alpha": torch.tensor(1.0)}
    save_file({f"lycoris_proj.{name}": factor for name, factor in factors.items()}, adapter)

    report = lyc_fx.fold_checkpoint(base, adapter, merged, strength=0.5)
    print(report)

    before, after = load_file(base), load_file(merged)
    facts = [[(name, t.shape, t.dtype) for name, t in tensors.items()] for tensors in (before, after)]
    print(f"same keys, shapes and dtypes: {facts[0] == facts[1]}")

    # LoKr by hand: alpha / rank is 1/2, the strength is 1/2; one rounding to bfloat16 at the end.
    by_hand = before["proj.weight"].double() + 0.5 * 0.5 * torch.kron(w1.double(), w2_a.double() @ w2_b.double())
    print(f"equal to the formula, rounded once: {torch.equal(after['proj.weight'], by_hand.bfloat16())}")
    print(f"bias untouched: {torch.equal(after['proj.bias'], before['proj.bias'])}")
