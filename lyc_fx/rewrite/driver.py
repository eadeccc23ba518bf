"""Rules, and the driver that applies them to a fixpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch.fx import GraphModule, Node

from lyc_fx.errors import InvalidGraph
from lyc_fx.rewrite.emit import Emit, erase_unused
from lyc_fx.rewrite.pattern import Bindings, Miss, Op

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

    count: int
    misses: tuple[str, ...]


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
    count = 0
    for _ in range(_ROUNDS):
        fired, misses = 0, []
        for node in list(gm.graph.nodes):
            if node._erased or node.op != "call_function" or not wanted(node):
                continue
            outcome = _first(gm, node, by_target.get(node.target, ()))
            if isinstance(outcome, Miss):
                if explain(node):
                    misses.append(f"{node.name}: {outcome}")
            elif outcome is not None:
                fired += 1
        count += fired
        if not fired:
            return Fired(count, tuple(misses))
    raise InvalidGraph(f"the rules {', '.join(r.name for r in rules)} still fire after {_ROUNDS} rounds")


def _first(gm: GraphModule, node: Node, rules: Sequence[Rule]) -> Node | Miss | None:
    deepest: Miss | None = None
    for rule in rules:
        result = rule.pattern.match(node, {})
        if not isinstance(result, Miss):
            replacement = rule.replace(Emit(gm, at=node, like=node), result)
            if isinstance(replacement, Node):
                node.replace_all_uses_with(replacement, propagate_meta=False)
                erase_unused(gm, [node])
                return replacement
            result = replacement or Miss(f"{rule.name} leaves it alone", 0)
        if deepest is None or result.depth > deepest.depth:
            deepest = Miss(f"{rule.name}: {result.reason}", result.depth)
    return deepest
