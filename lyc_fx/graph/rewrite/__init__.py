"""Patterns, rules and the driver that applies them to a graph."""

from lyc_fx.graph.rewrite.driver import Fired, Rule, rewrite
from lyc_fx.graph.rewrite.emit import EMITTED, MERGED, Emit, erase_unused
from lyc_fx.graph.rewrite.pattern import RESHAPES, Bindings, Either, Miss, Op, Pattern, Var, arguments

__all__ = [
    "EMITTED", "MERGED", "RESHAPES", "Bindings", "Either", "Emit", "Fired", "Miss", "Op", "Pattern", "Rule", "Var",
    "arguments", "erase_unused", "rewrite",
]  # fmt: skip
