"""lyc-fx: splice LyCORIS adapters into any PyTorch model's FX graph, fold them, export the result."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lyc_fx.adapters import AdapterSet
    from lyc_fx.capture import capture
    from lyc_fx.checkpoint import fold_checkpoint
    from lyc_fx.convert import convert
    from lyc_fx.coverage import coverage
    from lyc_fx.errors import (
        BadAdapter,
        BadFile,
        CaptureError,
        InvalidGraph,
        LycFxError,
        Unsupported,
        WrongArgument,
    )  # fmt: skip
    from lyc_fx.export import export
    from lyc_fx.formats import load
    from lyc_fx.live import merge
    from lyc_fx.plan import Plan
    from lyc_fx.program import history
    from lyc_fx.registering import register
    from lyc_fx.report import Report
    from lyc_fx.roads import evaluate, fold, lower, report, splice
    from lyc_fx.show import show
    from lyc_fx.stand_in import stand_in
    from lyc_fx.swap import Live, live

__version__ = "0.1.0"
__all__ = [
    "AdapterSet", "BadAdapter", "BadFile", "CaptureError", "InvalidGraph", "Live", "LycFxError", "Plan", "Report",
    "Unsupported", "WrongArgument", "capture", "convert", "coverage", "evaluate", "export", "fold", "fold_checkpoint",
    "history", "live", "load", "lower", "merge", "register", "report", "show", "splice", "stand_in",
]  # fmt: skip

_HOMES = {
    "AdapterSet": "adapters", "Live": "swap", "Plan": "plan", "Report": "report", "capture": "capture",
    "convert": "convert", "coverage": "coverage", "evaluate": "roads", "export": "export", "fold": "roads",
    "fold_checkpoint": "checkpoint", "history": "program", "live": "swap", "load": "formats", "lower": "roads",
    "merge": "live", "register": "registering", "report": "roads", "show": "show", "splice": "roads",
    "stand_in": "stand_in",
    "BadAdapter": "errors", "BadFile": "errors", "CaptureError": "errors", "InvalidGraph": "errors",
    "LycFxError": "errors", "Unsupported": "errors", "WrongArgument": "errors",
}  # fmt: skip


class _Package(ModuleType):
    """Imports a public name when it is first used: `lyc-fx --help` does not wait for torch."""

    def __getattr__(self, name: str) -> Any:
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        setattr(self, name, value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system binds submodules here: `capture`, `convert` and others are the functions of that name.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
