"""Rules, and the driver that applies them to a fixpoint."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch.fx import GraphModule, Node

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.rewrite.emit import EMITTED, MERGED, Emit, erase_unused
from lyc_fx.graph.rewrite.pattern import Bindings, Miss, Op
from lyc_fx.graph.steps import Missed

_ROUNDS = 1000


@final
@dataclass(frozen=True)
class Rule:
    """An equation: what matches `pattern` may be replaced by what `replace` emits.

    `replace` gets the bindings and returns the new node (which may be an old one), or None to leave the match
    alone, or a Miss that says why.
    """

    name: str
    pattern: Op
    replace: Callable[[Emit, Bindings], Node | Miss | None]


@final
@dataclass(frozen=True)
class Fired:
    """How often rules fired, and why those that were tried and got somewhere did not."""

    rules: Mapping[str, int]
    """By name"""
    misses: tuple[Missed, ...]

    @property
    def count(self) -> int:
        """Of all rules."""
        return sum(self.rules.values())


def rewrite(
    gm: GraphModule,
    rules: Sequence[Rule],
    *,
    wanted: Callable[[Node], bool] = lambda node: True,
    explain: Callable[[Node], bool] = lambda node: False,
) -> Fired:
    """Apply rules to the nodes that are `wanted` until none fires. Raises InvalidGraph if that does not end.

    For nodes to `explain` at which no rule fired, the deepest miss is reported.
    """
    by_target: dict[Any, list[Rule]] = {}
    for rule in rules:
        for target in rule.pattern.targets:
            by_target.setdefault(target, []).append(rule)
    counts: Counter[str] = Counter()
    for _ in range(_ROUNDS):
        fired, misses = False, []
        for node in list(gm.graph.nodes):
            if node._erased or node.op != "call_function" or not wanted(node):
                continue
            outcome = _first(gm, node, by_target.get(node.target, ()))
            if isinstance(outcome, Rule):
                counts[outcome.name] += 1
                fired = True
            elif outcome is not None and explain(node):
                rule, miss = outcome
                misses.append(Missed(rule.name, node.name, miss.reason))
        if not fired:
            return Fired(dict(counts), tuple(misses))
    raise InvalidGraph(f"the rules {', '.join(r.name for r in rules)} still fire after {_ROUNDS} rounds")


def _first(gm: GraphModule, node: Node, rules: Sequence[Rule]) -> Rule | tuple[Rule, Miss] | None:
    """The rule that fired, or else the one that got furthest, and why it did not."""
    deepest: tuple[Rule, Miss] | None = None
    for rule in rules:
        result = rule.pattern.match(node, {})
        if not isinstance(result, Miss):
            replacement = rule.replace(Emit(gm, at=node, like=node, by=rule.name), result)
            if isinstance(replacement, Node):
                if MERGED in node.meta and replacement.meta.get(EMITTED):
                    replacement.meta.setdefault(MERGED, node.meta[MERGED])
                node.replace_all_uses_with(replacement, propagate_meta=False)
                erase_unused(gm, [node])
                return rule
            result = replacement or Miss(f"{rule.name} leaves it alone", 0)
        if deepest is None or result.depth > deepest[1].depth:
            deepest = rule, result
    return deepest
