"""lyc-fx: splice LyCORIS adapters into any PyTorch model's FX graph, fold them, export the result."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lyc_fx.linkless import import_passes_beside

if TYPE_CHECKING:
    from lyc_fx.adapters.adapter_set import AdapterSet
    from lyc_fx.artefacts.bind import Artefact, bind
    from lyc_fx.artefacts.pack import Packed, pack
    from lyc_fx.attaching.attach import Attached, attach
    from lyc_fx.attaching.prepared import Prepared
    from lyc_fx.binding.report import Report
    from lyc_fx.checkpoint.fold_checkpoint import fold_checkpoint
    from lyc_fx.compiling import compile
    from lyc_fx.conversion import convert
    from lyc_fx.errors import (
        BadAdapter,
        BadFile,
        CaptureError,
        InvalidGraph,
        LycFxError,
        Unsupported,
        WrongArgument,
    )  # fmt: skip
    from lyc_fx.exporting.export import export
    from lyc_fx.exporting.kinds import slots, styles
    from lyc_fx.formats import load
    from lyc_fx.graph.capture import capture
    from lyc_fx.graph.exchange import exchange
    from lyc_fx.graph.plan import Plan
    from lyc_fx.graph.planning import plan
    from lyc_fx.graph.program import history
    from lyc_fx.graph.show import show
    from lyc_fx.graph.staging import restage
    from lyc_fx.graph.stand_in import stand_in
    from lyc_fx.graph.verbs import evaluate, fold, lower, report, splice, stage
    from lyc_fx.inspection.coverage import coverage
    from lyc_fx.model.merge import merge
    from lyc_fx.model.swap import Live, live
    from lyc_fx.registering import register

__version__ = "0.1.0"
__all__ = [
    "AdapterSet", "Artefact", "Attached", "BadAdapter", "BadFile", "CaptureError", "InvalidGraph", "Live", "LycFxError",
    "Packed", "Plan", "Prepared", "Report", "Served", "Unsupported", "WrongArgument", "attach", "bind", "capture",
    "compile", "convert", "coverage", "evaluate", "exchange", "export", "fold", "fold_checkpoint", "history", "live",
    "load", "lower", "merge", "pack", "plan", "register", "report", "restage", "serve", "show", "slots", "splice",
    "stage", "stand_in", "styles",
]  # fmt: skip

_HOMES = {
    "AdapterSet": "adapters.adapter_set", "Artefact": "artefacts.bind", "Attached": "attaching.attach",
    "BadAdapter": "errors", "BadFile": "errors", "CaptureError": "errors", "InvalidGraph": "errors",
    "Live": "model.swap", "LycFxError": "errors", "Packed": "artefacts.pack", "Plan": "graph.plan",
    "Prepared": "attaching.prepared", "Report": "binding.report", "Served": "attaching.serve", "Unsupported": "errors",
    "WrongArgument": "errors", "attach": "attaching.attach", "bind": "artefacts.bind", "capture": "graph.capture",
    "compile": "compiling", "convert": "conversion", "coverage": "inspection.coverage", "evaluate": "graph.verbs",
    "exchange": "graph.exchange", "export": "exporting.export", "fold": "graph.verbs",
    "fold_checkpoint": "checkpoint.fold_checkpoint", "history": "graph.program", "live": "model.swap",
    "load": "formats", "lower": "graph.verbs", "merge": "model.merge", "pack": "artefacts.pack",
    "plan": "graph.planning", "register": "registering", "report": "graph.verbs", "restage": "graph.staging",
    "serve": "attaching.serve", "show": "graph.show", "slots": "exporting.kinds", "splice": "graph.verbs",
    "stage": "graph.verbs", "stand_in": "graph.stand_in", "styles": "exporting.kinds",
}  # fmt: skip

if _beside := import_passes_beside():
    passes = _beside


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `lyc-fx --help` does not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
