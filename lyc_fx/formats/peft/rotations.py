"""PEFT's OFT: the strict upper triangle of each skew block, row by row, and settings in the configuration."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.texts import real

PACKED = ("packed_R", "packed_embedding_R")
_TERMS, _BOUND = 5, 6e-5
"""PEFT's defaults"""


def read(suffix: str, packed: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`oft_R.weight (n, b(b-1)/2)` as blocks `(n, b, b)`. Raises BadAdapter for another width.

    An embedding's output is turned the other way round, `W · R`: that is the inverse sign of the generator, for
    the series as for Cayley's map.
    """
    blocks = unpacked(packed)
    stated = int(real(config.get("num_cayley_neumann_terms", _TERMS), "num_cayley_neumann_terms"))
    terms = stated if config.get("use_cayley_neumann", True) else 0
    if config.get("use_cayley_neumann", True) and terms < 1:
        raise BadAdapter(f"num_cayley_neumann_terms is {terms}")
    full = {"oft_R": -blocks if suffix == "packed_embedding_R" else blocks, "oft_terms": torch.tensor(terms)}
    if config.get("coft"):
        full["alpha"] = torch.tensor(real(config.get("eps", _BOUND), "eps"), dtype=torch.float64)
    return full


def unpacked(packed: Tensor) -> Tensor:
    """`(n, b(b-1)/2)` → `(n, b, b)`, zero on and below the diagonal."""
    width = packed.shape[-1] if packed.dim() else 0
    size = (1 + isqrt(1 + 8 * width)) // 2
    if packed.dim() != 2 or size * (size - 1) // 2 != width:
        raise BadAdapter(f"oft_R is {tuple(packed.shape)}, not (blocks, b(b-1)/2): of a PEFT before 0.15? Train again")
    blocks = packed.new_zeros(packed.shape[0], size, size)
    rows, columns = torch.triu_indices(size, size, 1)
    blocks[:, rows, columns] = packed
    return blocks


def packed(blocks: Tensor) -> Tensor:
    """The inverse of `unpacked`, up to the symmetric part of the blocks, which has no effect."""
    rows, columns = torch.triu_indices(blocks.shape[-1], blocks.shape[-1], 1)
    return (blocks - blocks.transpose(-1, -2))[:, rows, columns]
