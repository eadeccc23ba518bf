"""Narrow layers of several adapters that read the same activations: one call, whose outputs are split."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lowering import fired
from nets import Conv1D, many, random_for
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.functional import scaled_dot_product_attention

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms import FAMILIES
from lyc_fx.graph import pipeline
from lyc_fx.graph.layers import sites
from lyc_fx.graph.program import BANK
from lyc_fx.graph.rewrite import Emit
from lyc_fx.passes.concat import Concat
from lyc_fx.passes.distribute import Distribute

aten = torch.ops.aten


def made(shape: tuple[int, ...], *, family: str = "locon", also: str = "", rank: int = 3, seed: int = 0) -> Adapter:
    found = next(f for f in FAMILIES if f.name == family)
    layout = found.layouts[0] | set(also.split())
    adapter = random_for((found, layout), shape, rank=rank, seed=seed, dtype=torch.float64)
    assert adapter is not None
    return adapter


class Attention(nn.Module):
    """Queries of two heads, keys and values of one."""

    def __init__(self, linear: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = linear(6, 8), linear(6, 4), linear(6, 4), linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (each(x).unflatten(-1, (-1, 4)).transpose(1, 2) for each in (self.q, self.k, self.v))
        return self.o(scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).flatten(-2))


def attention(linear: Callable[..., nn.Module] = nn.Linear) -> tuple[nn.Module, GraphModule]:
    torch.manual_seed(0)
    model = Attention(linear).double()
    return model, lyc_fx.capture(model, (x(),), dynamic_shapes={"x": "batch tokens _"})


def x(*, batch: int = 2, tokens: int = 5) -> Tensor:
    return torch.randn(batch, tokens, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


SHAPES = {"q": (8, 6), "k": (4, 6), "v": (4, 6), "o": (5, 8)}


def projections(**options: Any) -> dict[str, Adapter]:
    """Of other ranks for each layer."""
    return {n: made(s, rank=2 + i, seed=i, **options) for i, (n, s) in enumerate(SHAPES.items())}


def layers(program: GraphModule, weights: Callable[[Node], bool]) -> int:
    return sum(weights(site.weight) for site in sites(program.graph))


def of_adapters(weight: Node) -> bool:
    return weight.op != "get_attr" or str(weight.target).startswith(BANK)


def of_the_model(weight: Node) -> bool:
    return not of_adapters(weight)


def numbers_agree(after: GraphModule, before: GraphModule) -> None:
    for given in (x(), x(batch=3, tokens=7)):
        torch.testing.assert_close(after(given), before(given), rtol=1e-11, atol=1e-11)


def apart_and_joined(spliced: GraphModule) -> tuple[GraphModule, GraphModule]:
    """The lowered program before concat, and after it."""
    return pipeline.run(spliced, Distribute()), lyc_fx.lower(spliced, check=True)


@pytest.mark.parametrize("linear", [nn.Linear, lambda i, o: Conv1D(o, i)], ids=["Linear", "Conv1D"])
@pytest.mark.parametrize("also", ["", "magnitude"], ids=["LoRA", "DoRA of columns and rows"])
def test_queries_keys_and_values(linear: Callable[..., nn.Module], also: str) -> None:
    _, program = attention(linear)
    spliced = lyc_fx.splice(program, many(**projections(also=also)), 0.7)
    apart, joined = apart_and_joined(spliced)
    count = 3 if not also else 2  # x is scaled before one of them
    assert fired(joined, "concat") == count
    assert layers(joined, of_adapters) == layers(apart, of_adapters) - count + 1
    assert layers(joined, of_the_model) == layers(apart, of_the_model) == 4
    numbers_agree(joined, spliced)
    numbers_agree(lyc_fx.stage(joined), spliced)


def test_against_the_closed_formula_as_strengths_and_factors_change() -> None:
    model, program = attention()
    first, second = projections(), {n: made(s, rank=4, seed=7) for n, s in SHAPES.items()}
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, many(**first), 0.7, rank=5)))
    assert fired(staged, "concat") == 3 and layers(staged, of_adapters) == 1 + 3 + 2
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def wanted(adapters: dict[str, Any], strength: float) -> Tensor:
        change = {f"{n}.weight": strength * a.scale * a.up @ a.down for n, a in adapters.items()}
        merged = {name: weight + change.get(name, 0) for name, weight in before.items()}
        return torch.func.functional_call(model, merged, (x(),))  # type: ignore[no-any-return]

    torch.testing.assert_close(staged(x()), wanted(first, 0.7), rtol=1e-11, atol=1e-11)
    staged.get_buffer(f"{BANK}.0.strength").fill_(-1.3)
    lyc_fx.restage(staged)
    torch.testing.assert_close(staged(x()), wanted(first, -1.3), rtol=1e-11, atol=1e-11)
    lyc_fx.exchange(staged, many(**second), 0.4)
    torch.testing.assert_close(staged(x()), wanted(second, 0.4), rtol=1e-11, atol=1e-11)


def test_parts_of_a_fused_weight() -> None:
    """Adapters of some rows each read the same input."""
    model = nn.ModuleDict({"to_qkv": nn.Linear(6, 12)})
    model.forward = lambda x: model["to_qkv"](x)  # type: ignore[method-assign]
    program = lyc_fx.capture(model.double(), (x(),), dynamic_shapes={"x": "batch tokens _"})
    spliced = lyc_fx.splice(program, many(**{f"to_{n}": made((4, 6), rank=2 + i) for i, n in enumerate("qkv")}), 0.7)
    joined = lyc_fx.lower(spliced, check=True)
    assert fired(joined, "concat") == 3
    numbers_agree(joined, spliced)


def test_both_products_of_glora() -> None:
    _, program = attention()
    spliced = lyc_fx.splice(program, many(o=made(SHAPES["o"], family="glora")), 0.7)
    joined = lyc_fx.lower(spliced, check=True)
    assert fired(joined, "concat") == 2
    numbers_agree(joined, spliced)


class Two(nn.Module):
    """Two layers of one input, after and before something else."""

    def __init__(self, a: nn.Module, b: nn.Module, between: Callable[[Tensor], object] = lambda x: None) -> None:
        super().__init__()
        self.a, self.b, self.between = a, b, between

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.relu()
        a = self.a(x)
        other = self.between(x)
        return a, self.b(other if isinstance(other, Tensor) else x)


def two(model: Two, given: Tensor, dims: str, *ranks: int, also: str = "") -> tuple[int, GraphModule]:
    """How often concat fired, and the program, after its numbers were checked."""
    torch.manual_seed(0)
    model = model.double()
    shapes = [tuple(layer.weight.shape) for layer in (model.a, model.b)]  # type: ignore[union-attr]
    adapters = [made(s, rank=r, seed=r, also=also) for s, r in zip(shapes, ranks, strict=True)]  # type: ignore[arg-type]
    program = lyc_fx.capture(model, (given.double(),), dynamic_shapes={"x": dims})
    spliced = lyc_fx.splice(program, many(a=adapters[0], b=adapters[1]), 0.7)
    joined = lyc_fx.lower(spliced, check=True)
    assert fired(joined) == 2
    for after, before in zip(joined(given.double()), spliced(given.double()), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-11, atol=1e-11)
    return fired(joined, "concat"), joined


C2, T2 = nn.Conv2d, nn.ConvTranspose2d
IMAGE = torch.randn(2, 6, 9, 8)


@pytest.mark.parametrize("also", ["", "mid"], ids=["plain", "Tucker"])
@pytest.mark.parametrize(
    "model",
    [
        Two(C2(6, 9, 3, stride=2, padding=1), C2(6, 5, 3, stride=2, padding=1)),
        Two(C2(6, 9, (3, 2), padding="same"), C2(6, 5, (3, 2), padding="same")),
        Two(T2(6, 9, (3, 2), stride=2), T2(6, 5, (3, 2), stride=2)),
    ],
    ids=["strided", "same", "transposed"],
)
def test_convolutions(model: Two, also: str) -> None:
    assert two(model, IMAGE, "batch _ height width", 2, 3, also=also)[0] == 2


def write(x: Tensor) -> None:
    """Into activations that the graph goes on reading by the same node."""
    x[0].mul_(2.0)


@pytest.mark.parametrize(
    "model",
    [
        Two(C2(6, 9, 3, stride=2, padding=1), C2(6, 5, 3, padding=1)),
        Two(C2(6, 9, 3, padding=1), C2(6, 5, 3)),
        Two(C2(6, 9, 3, padding=1), C2(6, 5, (3, 2), padding=1)),
        Two(C2(6, 9, 3, groups=3), C2(6, 6, 3, groups=3)),
        Two(T2(6, 9, 3), C2(6, 5, 3)),
        Two(C2(6, 9, 3), C2(6, 5, 3), lambda x: x.tanh()),
        Two(C2(6, 9, 3), C2(6, 5, 3), write),
    ],
    ids=["stride", "padding", "kernel", "groups", "another operator", "another input", "a write between"],
)
def test_a_near_miss_is_left_alone(model: Two) -> None:
    count, program = two(model, IMAGE, "batch _ height width", 2, 3)
    assert count == 0 and aten.cat.default not in {node.target for node in program.graph.nodes}


def test_a_factor_that_depends_on_an_input_is_left_alone() -> None:
    _, program = attention()
    lowered = pipeline.run(lyc_fx.splice(program, many(**projections()), 0.7), Distribute())
    [given] = lowered.graph.find_nodes(op="placeholder")
    weight = next(s.weight for s in sites(lowered.graph) if s.weight.op == "call_function")
    total = Emit(lowered, at=weight, like=weight, by="a test")(aten.sum.default, given)
    strength = next(n for n in weight.all_input_nodes if str(n.target).endswith("strength") or n.op == "call_function")
    weight.replace_input_with(strength, total)
    lowered.recompile()
    joined = pipeline.run(lowered, Concat(), check=True)
    assert fired(joined, "concat") == 2
    numbers_agree(joined, lowered)


def test_the_models_own_narrow_layers_are_left_alone() -> None:
    _, program = attention()
    assert fired(pipeline.run(program, Concat()), "concat") == 0
    spliced = lyc_fx.splice(program, many(**projections()), 0.7)
    assert fired(pipeline.run(spliced, Concat()), "concat") == 0


def test_one_alone_is_left_alone() -> None:
    _, program = attention()
    lowered = lyc_fx.lower(lyc_fx.splice(program, many(q=made((8, 6)), o=made((5, 8))), 0.7))
    assert fired(lowered, "concat") == 0
