"""What chains compute twice is computed once, and a tensor of several layers is kept once."""

import copy
from typing import Any

import pytest
import torch
from lowering import LINEAR, adapted, fired, made
from nets import many, random_for
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.algorithms.vera import VeRA
from lyc_fx.graph import pipeline
from lyc_fx.graph.program import BANK
from lyc_fx.passes.distribute import Distribute

LAYERS, WIDTH, RANK = 8, 6, 5


class Stack(nn.Module):
    """Layers of one size, and one that is called twice."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(count))
        self.twice = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x).tanh()
        return self.twice(self.twice(x).relu())


def x(tokens: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)


def stack(dtype: torch.dtype = torch.float64, count: int = LAYERS) -> tuple[nn.Module, GraphModule]:
    torch.manual_seed(0)
    model = Stack(count).to(dtype).requires_grad_(False)
    return model, lyc_fx.capture(model, (x(dtype=dtype),), dynamic_shapes={"x": "tokens _"})


def vera(*, shared: bool = True) -> dict[str, Any]:
    """One A and B for all layers, wider than they ask for as PEFT has them, or some for each."""
    rng = torch.Generator().manual_seed(1)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=rng)

    common = {"a": drawn(RANK, WIDTH + 2), "b": drawn(WIDTH + 3, RANK)}
    found = {}
    for i in range(LAYERS):
        own = common if shared else {name: factor.clone() for name, factor in common.items()}
        found[f"layers_{i}"] = VeRA(**own, lambda_b=drawn(WIDTH), lambda_d=drawn(RANK))
    return found


def memory(program: GraphModule, *, staged: bool) -> int:
    """Bytes of the bank's tensors, each place in memory once."""
    found = [(name, t) for name, t in program.state_dict(keep_vars=True).items() if name.startswith(BANK)]
    found += [(name, t) for name, t in program.named_buffers() if ".staged." in name]
    chosen = [t for name, t in found if (".staged." in name) == staged and t.dim()]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in chosen}.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_matrices_of_vera_are_kept_once(dtype: torch.dtype) -> None:
    _, program = stack(dtype)
    staged = {}
    for shared in (True, False):
        spliced = lyc_fx.splice(program, many(**vera(shared=shared)), 0.7)
        staged[shared] = lyc_fx.stage(lyc_fx.lower(spliced, check=dtype == torch.float32))
        torch.testing.assert_close(staged[shared](x(dtype=dtype)), staged[True](x(dtype=dtype)))
    matrices, vectors = 4 * RANK * 2 * WIDTH, 4 * LAYERS * (WIDTH + RANK)
    assert memory(staged[True], staged=False) == matrices + vectors
    assert memory(staged[False], staged=False) == LAYERS * matrices + vectors
    cast = dtype == torch.bfloat16  # else the matrices are read as they are, and λ_d alone is scaled
    wanted = (matrices + vectors) // 2 if cast else 4 * LAYERS * RANK
    assert memory(staged[True], staged=True) == wanted
    assert memory(staged[False], staged=True) == wanted + (LAYERS - 1) * matrices // 2 * cast


def test_vera_against_the_closed_formula_as_strengths_change() -> None:
    model, program = stack()
    adapters = vera()
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, many(**adapters), 0.7)))
    for strength in (0.7, -1.3):
        staged.get_buffer(f"{BANK}.0.strength").fill_(strength)
        lyc_fx.restage(staged)
        weights = {name: weight.clone() for name, weight in model.named_parameters()}
        for i in range(LAYERS):
            a, b, rows, ranks = (
                getattr(adapters[f"layers_{i}"], name).double() for name in ("a", "b", "lambda_b", "lambda_d")
            )
            weights[f"layers.{i}.weight"] += strength * rows[:, None] * b[:WIDTH] @ (ranks[:, None] * a[:, :WIDTH])
        wanted = torch.func.functional_call(model, weights, (x(),))
        torch.testing.assert_close(staged(x()), wanted, rtol=1e-11, atol=1e-11)


def test_adapters_that_can_be_exchanged_have_factors_of_their_own() -> None:
    model, program = stack()
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, many(**vera()), 0.7, rank=RANK)))
    places = {staged.get_buffer(f"{BANK}.0.layers.{i}.weight.a").data_ptr() for i in range(LAYERS)}
    assert len(places) == LAYERS
    other = {n: random_for((VeRA, VeRA.layouts[0]), (WIDTH, WIDTH), rank=3, seed=i) for i, n in enumerate(vera())}
    lyc_fx.exchange(staged, many(**other), 0.4)  # type: ignore[arg-type]
    merged = copy.deepcopy(model)  # the program has the model's own weights
    lyc_fx.merge(merged, many(**other), 0.4)  # type: ignore[arg-type]
    torch.testing.assert_close(staged(x()), merged(x()), rtol=1e-11, atol=1e-11)


def test_a_rotation_of_a_layer_that_is_called_twice() -> None:
    _, program = stack(count=1)
    rotation = random_for(next((type(a), frozenset(a.factors())) for a in [made("diag-oft", LINEAR)]), (WIDTH, WIDTH))
    assert rotation is not None
    spliced = lyc_fx.splice(program, many(twice=rotation), 0.7)
    apart, shared = pipeline.run(spliced, Distribute()), lyc_fx.lower(spliced, check=True)
    solves = [sum("linalg_solve" in str(n.target) for n in gm.graph.nodes) for gm in (apart, shared)]
    assert solves == [2, 1] and fired(shared, "share") > 0
    staged = [lyc_fx.stage(gm) for gm in (apart, shared)]
    assert [fired(gm, "stage") for gm in staged] == [2, 1]
    torch.testing.assert_close(staged[1](x()), spliced(x()), rtol=1e-11, atol=1e-11)


def test_what_is_equal_but_apart_is_left_alone() -> None:
    """Tensors of equal values at different places, which may change each for itself; other strengths."""
    _, program = stack()
    factors = {f"layers_{i}": made("locon", LINEAR).with_factors(_factors()) for i in range(2)}
    spliced = lyc_fx.splice(program, [(many(**factors), 0.7), (many(**factors), 0.5)])
    lowered = lyc_fx.lower(spliced, check=True)
    read = [str(node.target) for node in lowered.graph.find_nodes(op="get_attr") if str(node.target).endswith("down")]
    assert len(read) == 4 - 2  # the two sets have the same tensors, the two layers have not
    scaled = [n for n in lowered.graph.nodes if n.target is torch.ops.aten.mul.Tensor]
    assert len(scaled) == 2 + 4  # two strengths times alpha / r, four right factors
    torch.testing.assert_close(lowered(x()), spliced(x()), rtol=1e-11, atol=1e-11)


def _factors() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(5)
    return {"up": torch.randn(WIDTH, 3, generator=rng), "down": torch.randn(3, WIDTH, generator=rng)}


def test_merged_weights_keep_their_formulas() -> None:
    program = adapted(LINEAR, made("tlora", LINEAR), made("tlora", LINEAR))
    lowered = lyc_fx.lower(program, check=True)
    assert fired(lowered, "share") == 0
    assert torch.equal(lyc_fx.stage(lowered)(LINEAR.x()), lyc_fx.fold(program)(LINEAR.x()))
