"""The layer kinds, one per file: which operators, where their weight is, and how they take a narrow one."""

from lyc_fx.graph.layers.bmm import REPEATS
from lyc_fx.graph.layers.call import Call
from lyc_fx.graph.layers.kind import LayerKind, named
from lyc_fx.graph.layers.layouts import in_layout_of_inputs
from lyc_fx.graph.layers.sites import Site, graphs, sites, weight_of
from lyc_fx.graph.layers.storage import read_by_linear, read_by_transposed_conv, stored_transposed
from lyc_fx.graph.layers.table import kinds
from lyc_fx.graph.layers.transposes import transpose_of
from lyc_fx.graph.layers.weight_norm import COMPUTED, weight_norm_parts

__all__ = [
    "COMPUTED",
    "REPEATS",
    "Call",
    "LayerKind",
    "Site",
    "graphs",
    "in_layout_of_inputs",
    "kinds",
    "named",
    "read_by_linear",
    "read_by_transposed_conv",
    "sites",
    "stored_transposed",
    "transpose_of",
    "weight_norm_parts",
    "weight_of",
]  # fmt: skip
