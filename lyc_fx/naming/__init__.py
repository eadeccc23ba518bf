"""Names: which parameters of a model a name in an adapter file stands for. One architecture per file."""

from lyc_fx.naming.bare import projections, projects
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
    "projections",
    "projects",
    "rows_of",
    "without_wrappers",
]
