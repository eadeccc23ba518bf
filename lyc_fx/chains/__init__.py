"""Exact forms of a layer on activations, one structure of its weight per file: the pattern and the chain.

A layer is linear in its weight, so `layer(x, W + s·Δ, b) = layer(x, W, b) + s · layer(x, Δ)`, and a structured Δ
needs no dense matrix; what maps the columns or rows of the weight maps the layer's inputs, or its outputs before
the bias. Chains run in the activations' dtype.
"""

from lyc_fx.chains import columns, input_map, khatri_rao, kronecker, low_rank, rows, tucker, weight_space
from lyc_fx.chains.layer import PEELED

RULES = tuple(
    rule
    for structure in (low_rank, kronecker, tucker, khatri_rao, input_map, columns, rows, weight_space)
    for rule in structure.RULES
)
"""Every rule; of several that match a layer, the first that fires."""

__all__ = ["PEELED", "RULES"]
