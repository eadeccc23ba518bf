"""What splice notes on a merged weight, and what lowering makes of it where something came between."""

import copy

import pytest
import torch
from lowering import EVEN, LINEAR, adapted, fired, made, misses, same_numbers
from nets import many
from torch import nn
from torch.fx import GraphModule, Node

import lyc_fx
from lyc_fx.graph.merged_weight import MergedWeight
from lyc_fx.graph.plan import Plan
from lyc_fx.graph.rewrite import EMITTED, MERGED, Emit

aten = torch.ops.aten


def merged(program: GraphModule) -> list[Node]:
    return [node for node in program.graph.nodes if MERGED in node.meta]


def test_a_merged_weight_says_what_it_is_made_of() -> None:
    [node] = merged(adapted(LINEAR, made("lokr", LINEAR), made("ia3", LINEAR)))
    noted = node.meta[MERGED]
    assert isinstance(noted, MergedWeight)
    assert [term.adapter.name for term in noted.terms] == ["lokr", "ia3"]
    assert dict(noted.terms[0].places) == {f: f"lyc_fx.0.layer.weight.{f}" for f in ("w1", "w2")}
    assert noted.terms[1].strength == "lyc_fx.1.strength"
    assert all(factor.is_meta for term in noted.terms for factor in term.adapter.factors().values())


def twice_as_strong(program: GraphModule) -> None:
    """As a pass would that knows nothing of the notes."""
    scaled = next(n for n in program.graph.nodes if n.target is aten.add.Tensor and n.meta.get(EMITTED))
    change = scaled.args[1]
    emit = Emit(program, at=scaled, like=scaled, by="a pass")
    scaled.replace_input_with(change, emit(aten.mul.Tensor, change, 2.0))


def clamped(program: GraphModule) -> None:
    [node] = merged(program)
    users = list(node.users)
    emit = Emit(program, at=users[0], like=users[0], by="a pass")
    after = emit(aten.clamp.default, node, -0.5, 0.5)
    for user in users:
        user.replace_input_with(node, after)


def halfway(program: GraphModule) -> None:
    """A part of the formula has another base weight than the rest."""
    weight = next(n for n in program.graph.nodes if n.target == "layer.weight")
    reader = next(iter(weight.users))
    with program.graph.inserting_before(reader):
        other = program.graph.call_function(aten.relu.default, (weight,))
    other.meta["val"] = weight.meta["val"]
    reader.replace_input_with(weight, other)


def three_times(program: GraphModule) -> None:
    """By an argument that is no input."""
    scaled = next(n for n in program.graph.nodes if n.target is aten.add.Tensor and n.meta.get(EMITTED))
    scaled.kwargs = {"alpha": 3}


def exchanged(program: GraphModule) -> None:
    """The same operators on the same values the other way round."""
    scaled = next(n for n in program.graph.nodes if n.target is aten.sub.Tensor and n.meta.get(EMITTED))
    scaled.args = (scaled.args[1], scaled.args[0])


CHANGED = "the formula of the adapted weight was changed after splice"


CHANGES = {
    twice_as_strong: CHANGED,
    three_times: CHANGED,
    exchanged: CHANGED,
    halfway: CHANGED,
    clamped: "goes through aten.clamp.default",
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.items())
def test_a_formula_that_was_changed_is_left_alone(change: object, reason: str) -> None:
    before = adapted(LINEAR, made("locon", LINEAR, "magnitude"))
    changed = copy.deepcopy(before)
    change(changed)  # type: ignore[operator]
    changed.recompile()
    after = lyc_fx.lower(changed, check=True)
    assert fired(after) == 0 and reason in misses(after)[0]
    assert not torch.allclose(after(LINEAR.x()), before(LINEAR.x()))
    same_numbers(after, changed, LINEAR)


def masked(program: GraphModule) -> None:
    """The base weight itself is another one: this is no part of the formula."""
    weight = next(n for n in program.graph.nodes if n.target == "layer.weight")
    readers = list(weight.users)
    with program.graph.inserting_after(weight):
        half = program.graph.call_function(aten.relu.default, (weight,))
    half.meta["val"] = weight.meta["val"]
    for reader in readers:
        reader.replace_input_with(weight, half)


@pytest.mark.parametrize("factors", [("locon",), ("locon", "magnitude"), ("ia3",)])
def test_the_base_may_be_computed(factors: tuple[str, ...]) -> None:
    before = adapted(LINEAR, made(factors[0], LINEAR, *factors[1:]))
    masked(before)
    before.recompile()
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    same_numbers(after, before, LINEAR)


def test_layers_may_be_lowered_one_after_the_other() -> None:
    model = nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 7)).double()
    factors = {}
    for at, (out, inner) in enumerate(((15, 6), (7, 15))):
        factors |= {f"lycoris_{at}.lora_up.weight": torch.randn(out, 2)}
        factors |= {f"lycoris_{at}.lora_down.weight": torch.randn(2, inner)}
    before = lyc_fx.splice(lyc_fx.capture(model, (LINEAR.x(),)), lyc_fx.load(factors), 0.7)
    half = lyc_fx.lower(before, Plan.default(before).only("linear_1"), check=True)
    assert fired(half) == 1 and len(merged(half)) == 1
    whole = lyc_fx.lower(half, check=True)
    assert fired(whole) == 2 and not merged(whole)
    torch.testing.assert_close(whole(LINEAR.x()), before(LINEAR.x()), rtol=1e-12, atol=1e-12)


def test_what_stays_is_noted_again() -> None:
    before = adapted(LINEAR, made("full", LINEAR), made("locon", LINEAR))
    [node] = merged(lyc_fx.lower(before, check=True))
    assert [term.adapter.name for term in node.meta[MERGED].terms] == ["full"]


PARTS = {
    "locon": (("locon",), 2),
    "lokr": (("lokr",), 2),
    "outputs scaled": (("ia3",), 2),
    "outputs rotated": (("diag-oft",), 2),
    "norms of outputs": (("locon", "magnitude"), 2),
    "inputs scaled": (("ia3",), 3),
    "GLoRA": (("glora",), 2),
}


@pytest.mark.parametrize("name", PARTS)
def test_some_rows_of_a_fused_weight(name: str) -> None:
    """Queries and values have adapters of their own; what needs other inputs for some rows alone stays."""
    (family, *factors), rank = PARTS[name]
    model = nn.ModuleDict({"qkv_proj": nn.Linear(6, 48)})
    model.forward = lambda x: model["qkv_proj"](x)
    parts = {f"{part}_proj": made(family, EVEN, *factors, rank=rank, seed=i) for i, part in enumerate("qv")}
    before = lyc_fx.splice(lyc_fx.capture(model.double(), (EVEN.x(),)), many(**parts), 0.7)
    after = lyc_fx.lower(before, check=True)
    if name in ("inputs scaled", "GLoRA"):
        assert fired(after) == 0 and "a second pass through the layer" in misses(after)[0]
    else:
        assert fired(after) == 2 and not merged(after)
    torch.testing.assert_close(after(EVEN.x()), before(EVEN.x()), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", ["locon", "lokr", "loha"])
@pytest.mark.parametrize("rank", [1, 2], ids=["inputs", "outputs"])
def test_gradients_of_given_norms(family: str, rank: int) -> None:
    """Through the norms, which no dense change is made for."""
    layout = {"locon": ("up", "down"), "lokr": ("w1", "w2"), "loha": ("w1_a", "w1_b", "w2_a", "w2_b")}[family]
    adapter = made(family, EVEN, *layout, "magnitude", rank=rank).to(torch.float64)
    before = adapted(EVEN, adapter)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    found = []
    for program in (before, after):
        wanted = {n: p for n, p in program.named_parameters() if p.requires_grad}
        found.append(
            dict(zip(wanted, torch.autograd.grad(program(EVEN.x()).square().sum(), wanted.values()), strict=True))
        )
    assert found[0].keys() == found[1].keys() and len(found[0]) == 3 + len(layout)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [((4, 6), (4, 6)), ((4, 6), (2, 3, 6)), ((4, 6), (6, 4))])
def test_layers_that_are_alike_share_a_trace_and_no_sizes(sizes: tuple[tuple[int, ...], ...]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 16), nn.Linear(6, 16)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.a(x), self.b(y if y.shape[-1] == 6 else y.mT)

    inputs = tuple(torch.randn(size, dtype=torch.float64) for size in sizes)
    adapters = many(a=made("diag-oft", EVEN), b=made("diag-oft", EVEN, seed=1))
    before = lyc_fx.splice(lyc_fx.capture(Twice().double(), inputs), adapters, 0.7)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2
    for found, wanted in zip(after(*inputs), before(*inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11)
