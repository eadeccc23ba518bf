"""lyc-fx: splice LyCORIS adapters into any PyTorch model's FX graph, fold them, export the result."""

from lyc_fx.adapters import AdapterSet
from lyc_fx.capture import capture
from lyc_fx.checkpoint import fold_checkpoint
from lyc_fx.export import export
from lyc_fx.formats import load
from lyc_fx.live import merge
from lyc_fx.plan import Plan
from lyc_fx.program import history
from lyc_fx.report import Report
from lyc_fx.roads import fold, lower, report, splice
from lyc_fx.show import show

__version__ = "0.1.0"
__all__ = [
    "AdapterSet", "Plan", "Report", "capture", "export", "fold", "fold_checkpoint", "history", "load", "lower", "merge",
    "report", "show", "splice",
]  # fmt: skip
