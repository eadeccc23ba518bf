"""Translation validation: broken rules are caught and named; sound ones are not; nothing is left behind."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowering import CONV, EVEN, LINEAR, adapted, made
from nets import Case
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algebra import Kron, Low, Structure
from lyc_fx.algebra.blocks import Blocks
from lyc_fx.algebra.layer import Layer, Scale
from lyc_fx.algebra.maps import Diagonal, Map
from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.rewrite import Op, Rule, Var
from lyc_fx.graph.trials import outputs, trials
from lyc_fx.passes import canonicalize, fold, narrow

aten = torch.ops.aten
Mutation = Callable[[pytest.MonkeyPatch], None]


def spoilt(structure: type[Structure], spoil: Callable[[Tensor, Tensor], Tensor]) -> Mutation:
    """Its chains give something else, from what they give and their input."""
    real = structure.act

    def broken(self: Any, layer: Layer, x: Tensor, scale: Scale = 1.0) -> Tensor:
        return spoil(real(self, layer, x, scale), x)

    return lambda patch: patch.setattr(structure, "act", broken)


def without_scale(patch: pytest.MonkeyPatch) -> None:
    real = Layer.product
    patch.setattr(Layer, "product", lambda self, x, *factors, scale=1.0: real(self, x, *factors))


def mapped(side: type[Map], spoil: Callable[[Tensor], Tensor]) -> Mutation:
    """What it does to activations is something else."""
    real = side.act

    def broken(self: Any, layer: Layer, x: Tensor, *, on_rows: bool, turned: bool) -> Tensor:
        return spoil(real(self, layer, x, on_rows=on_rows, turned=turned))

    return lambda patch: patch.setattr(side, "act", broken)


def canonical(rule: Rule) -> Mutation:
    return lambda patch: patch.setattr(canonicalize, "RULES", (*canonicalize.RULES, rule))


def coarse(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(narrow, "torch", type("Torch", (), {**vars(torch), "float32": torch.bfloat16}))


def stale(patch: pytest.MonkeyPatch) -> None:
    real = fold._stores
    patch.setattr(fold, "_stores", lambda base, value: real(base, value * 1.001))


MUTATIONS: dict[str, tuple[Mutation, str, Case, str]] = {
    "a chain twice as strong": (spoilt(Low, lambda y, x: y + y), "locon", LINEAR, "distribute"),
    "a chain with the wrong sign": (spoilt(Low, lambda y, x: -y), "locon", CONV, "distribute"),
    "a chain without its scale": (without_scale, "locon", LINEAR, "distribute"),
    "no chain at all": (spoilt(Kron, lambda y, x: y * 0), "lokr", CONV, "distribute"),
    "channels in another order": (mapped(Blocks, lambda y: y.flip(2)), "diag-oft", EVEN, "distribute"),
    "outputs changed a little": (mapped(Diagonal, lambda y: y * 1.000001), "ia3", LINEAR, "distribute"),
    "any factor taken for one": (
        canonical(Rule("x·c", Op(aten.mul.Tensor, Var("x"), Var("c", lambda c: None if isinstance(c, float) else "no")),
                       lambda e, m: m["x"])), "locon", LINEAR, "canonicalize"
    ),
    "half of a sum": (
        canonical(Rule("x+y", Op(aten.add.Tensor, Var("x"), Var("y")), lambda e, m: m["x"])), "glora", LINEAR,
        "canonicalize"
    ),
    "sums in too few digits": (coarse, "full", LINEAR, "narrow"),
    "another weight stored": (stale, "loha", LINEAR, "fold"),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate, family, case, culprit = MUTATIONS[name]
    low = culprit == "narrow"
    before = adapted(case, made(family, case), dtype=torch.float32 if low else torch.float64)
    run = lyc_fx.fold if culprit == "fold" else lyc_fx.lower
    run(before, check=True)
    mutate(monkeypatch)
    with pytest.raises(InvalidGraph, match=f"pass {culprit.title()} changes what the program computes"):
        run(before, check=True)


def test_the_message_names_the_rule_and_the_first_node(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(6, 15), nn.ReLU(), nn.Linear(15, 4)).double()
    factors = {"lycoris_0.lora_up.weight": torch.randn(15, 2), "lycoris_0.lora_down.weight": torch.randn(2, 6)}
    before = lyc_fx.splice(lyc_fx.capture(model, (torch.randn(3, 6).double(),)), lyc_fx.load(factors), 0.7)
    without_scale(monkeypatch)
    with pytest.raises(InvalidGraph) as caught:
        lyc_fx.lower(before, check=True)
    assert "first node that differs is relu, which reads what was made by low rank on aten" in str(caught.value)
    lyc_fx.lower(before)


def test_both_sizes_are_tried() -> None:
    program = adapted(LINEAR, made("locon", LINEAR))
    shapes = [tuple(x.shape) for [x] in trials(program)]
    assert shapes == [(2, 5, 6), (3, 6, 6)]
    fixed = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    assert [tuple(x.shape) for [x] in trials(fixed)] == [(2, 5, 6)]
    halves = lyc_fx.capture(Halves(), (torch.randn(4, 6),), dynamic_shapes={"x": "batch _"})
    assert [tuple(x.shape) for [x] in trials(halves)] == [(4, 6), (6, 6)], "what the guards refuse is not tried"


class Halves(nn.Module):
    """Takes even batches alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, x.shape[0] // 2, -1).sum(0)


class Counts(nn.Module):
    """Writes to a buffer and to its input, and draws."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.layer = nn.Linear(6, 15)

    def forward(self, x: Tensor) -> Tensor:
        x.add_(1)
        return self.layer(nn.functional.dropout(self.norm(x), 0.5, self.training))


def test_a_check_leaves_buffers_inputs_and_the_random_state() -> None:
    model = Counts().double().train()
    program = lyc_fx.capture(model, (torch.randn(4, 6).double(),))
    state, random = {n: t.clone() for n, t in model.state_dict().items()}, torch.get_rng_state()
    [inputs] = trials(program)
    kept = inputs[0].clone()
    first, second = outputs(program, inputs), outputs(program, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(inputs[0], kept)
    assert torch.equal(torch.get_rng_state(), random)
    factors = {"lycoris_layer.lora_up.weight": torch.randn(15, 2), "lycoris_layer.lora_down.weight": torch.randn(2, 6)}
    lyc_fx.lower(lyc_fx.splice(program, lyc_fx.load(factors)), check=True)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())


def test_a_program_that_cannot_be_run_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 15))
    factors = {"lycoris_0.lora_up.weight": torch.randn(15, 2), "lycoris_0.lora_down.weight": torch.randn(2, 6)}
    adapted = lyc_fx.splice(lyc_fx.capture(model, (torch.randn(2, 6),)), lyc_fx.load(factors))
    lyc_fx.lower(adapted)
    with pytest.raises(InvalidGraph, match=r"0\.weight has no values yet"):
        lyc_fx.lower(adapted, check=True)


def test_history_counts_each_rule() -> None:
    program = lyc_fx.lower(adapted(LINEAR, made("locon", LINEAR), made("lokr", LINEAR)))
    [step] = [s for s in lyc_fx.history(program) if s.name == "distribute"]
    assert step.rules == {"low rank on aten.linear.default": 1, "Kronecker on aten.linear.default": 1}
    assert sum(step.rules.values()) == step.fired and "low rank on aten.linear.default: 1" in str(step)
    made_by = {node.meta.get("lyc_fx") for node in program.graph.nodes}
    assert made_by == {None, "splice", "low rank on aten.linear.default and Kronecker on aten.linear.default"}
