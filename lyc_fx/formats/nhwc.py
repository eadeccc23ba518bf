"""The kernel-first layout of a port of LyCORIS to a library whose convolutions are NHWC: LyCORIS's keys, bfloat16.

A weight is `(in, out)` there, or `(*kernel, in, out)`. From LyCORIS's layout (r: rank, p: rank on the output side,
q: rank on the input side, K: any number of kernel dimensions):

| suffix | LyCORIS | here |
|---|---|---|
| `lora_down.weight` | `(r, in, *K)` | `(*K, in, r)` |
| `lora_up.weight` | `(out, r, 1…)` | `(1…, r, out)` |
| `lora_mid.weight`, `hada_t1`, `hada_t2` | `(p, q, *K)` | `(*K, q, p)` |
| `hada_w1_b`, `hada_w2_b` | `(r, in, *K)` or `(r, in · K)` | `(*K, in, r)` or `(in · K, r)` |
| the same with a core | `(q, in)` | `(in, q)` |
| `hada_w1_a`, `hada_w2_a` | `(out, r)` | `(r, out)` |
| the same with a core | `(p, out)` | `(p, out)`: as it is |
| `lokr_w2_a` with a core | `(p, k)` | `(k, p)` |
| all else of LoKr | `w1 (l, m)`, `w2 (k, n, *K)`, `t2 (p, q, *K)` | as it is |

A file of LyCORIS does not say what K is in `in · K`: the product is transposed as a whole, and its order stays
input first. What the port does not have (magnitudes, biases, and the other algorithms) lies as in LyCORIS.

The port's files carry no mark. `write` adds one to the metadata, under `MARK`. A file without it is read by its
shapes (`formats.detection`), module by module; `load(..., layout=…)` rules over both.

Two mistakes of the port do not enter:

- It gives spatial adapters an up kernel of the weight's size, `(*K, r, out)`. Its forward runs two convolutions
  of that size, which is no change of the weight; its difference is `ΔW[κ] = down[κ] @ up[κ]`. Where the kernel is
  the same at every κ, the second is the reference with a 1×1 up, and is read so; where it is not, it is refused.
  In spatial LoHa the port calls the up factor `w*_b`: told by the shapes, where only that reading meets.
- Its LoHa multiplies activations, which is quadratic in x. That is its forward alone: the files are as they are.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import BadAdapter, Unsupported, listing
from lyc_fx.formats.format import MARK, Contents, Format, Source
from lyc_fx.formats.lycoris import Lycoris, tensors_of
from lyc_fx.formats.reading.detection import consistent, decided
from lyc_fx.formats.reading.kernels import kernel_first, moved, named, turned, varying


@final
class Nhwc(Format):
    """LyCORIS's keys, where the metadata or the caller says that their tensors are laid out kernel first."""

    name = "nhwc"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        return Lycoris().parse(key, source) if source.stated_layout == "nhwc" else None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        """The group in LyCORIS's layout. Raises BadAdapter where the factors do not meet, or an up kernel varies."""
        full = named(group)
        if not consistent(turned(full)):
            shapes = ", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in sorted(group.items()))
            raise BadAdapter(f'the factors do not meet in layout "nhwc": {shapes}; load(..., layout="torch")?')
        if varying(full):
            raise BadAdapter(
                f"the up kernel of {', '.join(varying(full))} differs from tap to tap, and has two readings: "
                "ΔW[κ] = down[κ] @ up[κ] in the port's merge, two convolutions one after the other in its forward. "
                "Neither is an adapter of LyCORIS; save the difference that is meant as `diff`"
            )
        return {suffix: tensor.contiguous() for suffix, tensor in turned(full).items()}

    def write(self, adapters: AdapterSet) -> Contents:
        """All factors in bfloat16, rounded to nearest; `alpha` stays float32. What is bfloat16 keeps its bits.

        Raises Unsupported where a factor is beyond bfloat16's range, and for two adapters of one weight.
        """
        tensors: dict[str, Tensor] = {}
        faults = []
        for module, written in tensors_of(adapters):
            for suffix, tensor in written.items():
                stored = tensor.to(torch.bfloat16) if tensor.is_floating_point() and suffix != "alpha" else tensor
                if bool((stored.isinf() & ~tensor.isinf()).any()):
                    faults.append(f"  {module}: {suffix} is beyond the range of bfloat16")
                laid = kernel_first(stored) if suffix in moved(written) else stored
                tensors[f"{module}.{suffix}"] = laid.contiguous()
        if faults:
            raise Unsupported(listing(f"{len(faults)} factors cannot be written as nhwc:", faults))
        return Contents(tensors, {**adapters.metadata, MARK: "nhwc"})


def laid_out_so(groups: Mapping[str, Mapping[str, Tensor]]) -> set[str]:
    """The modules whose factors' shapes say that they are laid out kernel first."""
    fits = {}
    for module, group in groups.items():
        plain, other = consistent(group), named(group)
        # A 1×1 of LyCORIS with out = rank = in may pass for a spatial up kernel, but not for one that can be read.
        fits[module] = (plain, consistent(turned(other)) and not (plain and varying(other)))
    return decided(fits)
