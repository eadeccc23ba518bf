"""Patterns and the driver: what matches, why something does not, and an end to rules that never stop."""

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.rewrite import Bindings, Either, Emit, Miss, Op, Rule, Var, arguments, rewrite
from lyc_fx.graph.steps import Missed

aten = torch.ops.aten
X = torch.randn(3, 3)


def graph_of(formula):  # type: ignore[no-untyped-def]
    return make_fx(formula, tracing_mode="fake", pre_dispatch=True)(X)


def result(program: torch.fx.GraphModule) -> torch.fx.Node:
    return next(n for n in program.graph.nodes if n.op == "output").all_input_nodes[0]


def test_defaults_are_filled_in_by_position() -> None:
    node = result(graph_of(lambda x: torch.nn.functional.linear(x, x)))
    assert len(node.args) == 2 and arguments(node)[2] is None


def test_the_same_variable_is_the_same_thing() -> None:
    pattern = Op(aten.mul.Tensor, Var("x"), Var("x"))
    assert not isinstance(pattern.match(result(graph_of(lambda x: x * x)), {}), Miss)
    miss = pattern.match(result(graph_of(lambda x: x * x.t())), {})
    assert isinstance(miss, Miss) and "x is both x_1 and t" in str(miss)


def test_a_miss_names_what_was_found_and_goes_deepest() -> None:
    node = result(graph_of(lambda x: (x @ x.t()) * 2.0))
    shallow, deep = Op(aten.add.Tensor, Var("x"), ...), Op(aten.mul.Tensor, Op(aten.t.default, Var("x")), ...)
    miss = Either(shallow, deep).match(node, {})
    assert str(miss) == "matmul is aten.matmul.default, not aten.t.default"
    refused = Op(aten.mul.Tensor, Var("x", lambda value: "too blue")).match(node, {})
    assert str(refused) == "x = matmul: too blue"


def test_a_rule_fires_to_a_fixpoint_and_is_counted() -> None:
    program = graph_of(lambda x: x.t().t().t().t())

    def unwrap(emit: Emit, m: Bindings) -> torch.fx.Node:
        node = m["x"]
        assert isinstance(node, torch.fx.Node)
        return node

    rule = Rule("tt", Op(aten.t.default, Op(aten.t.default, Var("x"))), unwrap)
    assert rewrite(program, [rule]).count == 2
    program.recompile()
    assert torch.equal(program(X), X)
    assert rewrite(program, [rule]).count == 0


def test_a_rule_that_never_ends_is_an_error() -> None:
    def again(emit: Emit, m: Bindings) -> torch.fx.Node:
        return emit(aten.t.default, m["x"])

    rule = Rule("again", Op(aten.t.default, Var("x")), again)
    with pytest.raises(InvalidGraph, match="again still fire after"):
        rewrite(graph_of(lambda x: x.t()), [rule])


def test_the_reason_of_a_rule_is_reported_for_the_nodes_asked_about() -> None:
    def never(emit: Emit, m: Bindings) -> Miss:
        return Miss("not today", 5)

    def formula(x: Tensor) -> Tensor:
        return x * 2.0 + x

    rule = Rule("never", Op(aten.mul.Tensor, Var("x"), ...), never)
    program = graph_of(formula)
    fired = rewrite(program, [rule], explain=lambda node: node.target is aten.mul.Tensor)
    assert str(fired.misses[0]) == "mul: never: not today"
    assert fired.count == 0 and fired.misses == (Missed("never", "mul", "not today"),)


@pytest.mark.parametrize(
    ("formula", "named"),
    [
        (lambda x: torch.add(x, x.t(), alpha=4), "alpha = 4"),
        (lambda x: torch.sub(x, x.t(), alpha=0.5), "alpha = 0.5"),
    ],
)
def test_an_argument_that_a_pattern_does_not_name_has_its_default(formula, named: str) -> None:  # type: ignore[no-untyped-def]
    node = result(graph_of(formula))
    pattern, plain = Op(node.target, Var("x"), Var("y")), result(graph_of(lambda x: x + x.t()))
    miss = pattern.match(node, {})
    assert isinstance(miss, Miss) and str(miss).endswith(f"is called with {named}")
    assert not isinstance(Op(node.target, Var("x"), ...).match(node, {}), Miss)
    assert not isinstance(Op(aten.add.Tensor, Var("x"), Var("y")).match(plain, {}), Miss)


def test_a_call_of_no_operator_has_no_defaults() -> None:
    graph = torch.fx.Graph()
    node = graph.call_function(max, (graph.placeholder("x"), 1))
    assert isinstance(Op(max, Var("x")).match(node, {}), Miss) and not isinstance(
        Op(max, Var("x"), ...).match(node, {}), Miss
    )
    assert isinstance(Op(max, Var("x"), Var("y"), Var("z")).match(node, {}), Miss)
