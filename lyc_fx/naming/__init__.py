"""Finding the parameters of a model that a name in an adapter file means. Each architecture has a file of its own."""

from lyc_fx.naming.bare import is_projection, projections
from lyc_fx.naming.components import COMPONENTS, PREFIXES
from lyc_fx.naming.fused import FUSIONS, INTERLEAVED
from lyc_fx.naming.gated import in_before_out
from lyc_fx.naming.names import Name, Names, flatten
from lyc_fx.naming.piece import Piece, Pieces, Rows
from lyc_fx.naming.scheme import Dialect
from lyc_fx.naming.target_names import Place, Target, TargetNames, rows_of
from lyc_fx.naming.wrappers import without_wrappers

__all__ = [
    "COMPONENTS",
    "FUSIONS",
    "INTERLEAVED",
    "PREFIXES",
    "Dialect",
    "Name",
    "Names",
    "Piece",
    "Pieces",
    "Place",
    "Rows",
    "Target",
    "TargetNames",
    "flatten",
    "in_before_out",
    "is_projection",
    "projections",
    "rows_of",
    "without_wrappers",
]
