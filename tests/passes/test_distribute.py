"""distribute: fires where an exact chain exists, says why where not, keeps numbers and shapes."""

import copy
from math import prod

import pytest
import torch
from golden import expect
from lowering import CONV, LINEAR, MORE_CASES, adapted, fired, groups_of, made, misses, same_numbers
from nets import VARIANTS, Case, Variant, certain, many, one, pairs, random_for, variant_id
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.adapters.shaped import Additive
from lyc_fx.algorithms import FAMILIES
from lyc_fx.graph.layers import sites
from lyc_fx.graph.plan import Plan

LOCON = next(f for f in FAMILIES if f.name == "locon")


def chain_layers(adapter: Adapter, case: Case) -> int | None:
    """What the docs promise: how many layers of the table stand for the site when it is lowered; None for no chain."""
    factors, groups = adapter.factors(), groups_of(case)
    shapes = {name: tuple(factor.shape) for name, factor in factors.items()}
    if len(case.logical) < 2:
        return None
    out, inner, spatial = case.logical[0], case.logical[1], len(case.logical) > 2
    if adapter.name == "locon":
        return 4 if "mid" in factors else 3
    if adapter.name == "lokr":
        rows = shapes["w1"][0] if "w1" in factors else shapes["w1_a"][0]
        right = 1 if "w2" in factors else 3 if "t2" in factors else 2
        return None if rows % groups else 1 + right + (not spatial)
    if adapter.name == "loha":
        return _khatri_rao(out, inner, prod(case.logical[2:]), groups, adapter)
    if adapter.name == "diag-oft":
        return None if (out // groups) % shapes["blocks"][1] else 1 + spatial
    if adapter.name == "boft":
        stages, _, size, _ = shapes["blocks"]
        return None if (out // groups) % (2 ** (stages - 1) * size) else 1 + spatial * -(-stages // 2)
    if adapter.name in ("oft-input", "boft-input"):
        stages, size = shapes["blocks"][0] if adapter.name == "boft-input" else 1, shapes["blocks"][-1]
        whole = prod(case.logical[2:]) == 1 and inner % (2 ** (stages - 1) * size) == 0
        return 1 + spatial * stages if whole else None
    if adapter.name == "hra":
        return 3 if prod(case.logical[2:]) == 1 else None
    if adapter.name == "glora":
        return 5 if spatial else 4  # both products read x: on a convolution one of them as 1×1
    return {"ia3": 1, "vera": 3}.get(adapter.name)


def _khatri_rao(out: int, inner: int, taps: int, groups: int, adapter: Adapter) -> int | None:
    """Where r² is small enough to beat the dense product."""
    square = (adapter.rank or 0) ** 2
    plain = square * (out + groups * inner * taps)
    tucker = square * (out + groups * (inner + square * taps))
    core = "t1" in adapter.factors()
    return (4 if core else 3) if (tucker if core else plain) < out * inner * taps else None


PLAIN = [variant for variant in VARIANTS if "magnitude" not in variant[1]]
"""Given norms are tried on every layer in test_layer_kinds, and here on two with every structure"""
NORMED = [variant for variant in VARIANTS if variant not in PLAIN]
TRIED = [*pairs(MORE_CASES, PLAIN, rank=2), *pairs([LINEAR, CONV], NORMED, rank=2)]


@pytest.mark.parametrize(("variant", "case"), TRIED, ids=variant_id)
def test_fires_exactly_where_a_chain_exists_and_keeps_the_numbers(variant: Variant, case: Case) -> None:
    adapter = certain(variant, case.logical, rank=2 if variant[0].name == "loha" else 3)
    before = adapted(case, adapter)
    after = lyc_fx.lower(before, check=True)
    layers = chain_layers(adapter, case)
    own = len(list(sites(before.graph)))
    assert own == (len(case.logical) > 1)
    assert fired(after) == (layers is not None)
    assert len(misses(after)) == (layers is None)
    assert len(list(sites(after.graph))) == (own if layers is None else layers)
    same_numbers(after, before, case)
    shapes = [n.all_input_nodes[0].meta["val"].shape for g in (before, after) for n in g.graph.find_nodes(op="output")]
    assert str(shapes[0]) == str(shapes[1])
    assert any(isinstance(size, torch.SymInt) for size in shapes[0])


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=variant_id)
def test_several_adapters_become_several_chains_and_what_has_none_stays(case: Case) -> None:
    """A map of the base weight itself (IA3, rotations) stays beside what stays; GLoRA's takes a second pass."""
    stack = [random_for(variant, case.logical, seed=i, rank=2) for i, variant in enumerate(VARIANTS)]
    adapters = [adapter for adapter in stack if adapter is not None]
    before = adapted(case, *adapters)
    after = lyc_fx.lower(before, check=True)
    sums = [a for a in adapters if (isinstance(a, Additive) and a.additive) or a.name in ("glora", "hra")]
    chained = [adapter for adapter in sums if chain_layers(adapter, case) is not None]
    assert 0 < len(chained) < len(adapters)
    assert fired(after) == len(chained)
    same_numbers(after, before, case)


def test_a_plan_chooses_the_layers() -> None:
    model = nn.Sequential(nn.Linear(6, 15), nn.Linear(15, 7)).double()
    program = lyc_fx.capture(model, (LINEAR.x(),))
    entries = []
    for name, shape in (("0", (15, 6)), ("1", (7, 15))):
        adapter = random_for((LOCON, LOCON.layouts[0]), shape)
        assert adapter is not None
        entries += one(adapter, f"lycoris_{name}").entries
    before = lyc_fx.splice(program, AdapterSet(tuple(entries)), 0.7)
    plan = Plan.default(before)
    assert str(plan).split() == ["layer", "form", "linear", "chain", "linear_1", "chain"]
    after = lyc_fx.lower(before, plan.only("linear_1"), check=True)
    assert fired(after) == 1
    assert [each.form for each in plan.only("linear_1").layers] == ["resident", "chain"]
    torch.testing.assert_close(after(LINEAR.x()), before(LINEAR.x()), rtol=1e-12, atol=1e-12)


def test_the_low_rank_chain_as_text() -> None:
    adapter = made("locon", LINEAR)
    expect(
        lyc_fx.show(lyc_fx.lower(adapted(LINEAR, adapter, dtype=torch.float32), check=True), shapes=True),
        """
        x = input  # float32 (s77, s27, 6)
        mul_2 = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)  # float64 ()
        linear_1 = aten.linear(x, layer.weight, layer.bias)  # float32 (s77, s27, 15)
        mul_3 = aten.mul.Tensor(lyc_fx.0.layer.weight.down, mul_2)  # float32 (3, 6)
        linear_2 = aten.linear(x, mul_3)  # float32 (s77, s27, 3)
        linear_3 = aten.linear(linear_2, lyc_fx.0.layer.weight.up)  # float32 (s77, s27, 15)
        add_1 = aten.add.Tensor(linear_1, linear_3)  # float32 (s77, s27, 15)
        return (add_1)
        """,
    )


def test_the_tucker_chain_on_a_grouped_convolution_as_text() -> None:
    adapter = made("locon", CONV, "mid")
    expect(
        lyc_fx.show(lyc_fx.lower(adapted(CONV, adapter, dtype=torch.float32), check=True)),
        """
        x = input
        flatten_4 = aten.flatten.using_ints(lyc_fx.0.layer.weight.down, 1)
        mul_2 = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        conv2d_1 = aten.conv2d(x, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        mul_3 = aten.mul.Tensor(flatten_4, mul_2)
        unflatten = aten.unflatten.int(mul_3, 1, [-1, 1, 1])
        repeat = aten.repeat(unflatten, [2, 1, 1, 1])
        conv2d_2 = aten.conv2d(x, repeat, None, [1, 1], [0, 0], [1, 1], 2)
        repeat_1 = aten.repeat(lyc_fx.0.layer.weight.mid, [2, 1, 1, 1])
        conv2d_3 = aten.conv2d(conv2d_2, repeat_1, None, [2, 1], [1, 2], [2, 1], 2)
        conv2d_4 = aten.conv2d(conv2d_3, lyc_fx.0.layer.weight.up, None, [1, 1], [0, 0], [1, 1], 2)
        add_1 = aten.add.Tensor(conv2d_1, conv2d_4)
        return (add_1)
        """,
    )


def test_the_kronecker_chain_never_builds_the_dense_product() -> None:
    adapter = made("lokr", LINEAR)
    lowered = lyc_fx.lower(adapted(LINEAR, adapter, dtype=torch.float32), check=True)
    assert not [n for n in lowered.graph.nodes if n.target is torch.ops.aten.kron.default]
    expect(
        lyc_fx.show(lowered),
        """
        x = input
        linear_1 = aten.linear(x, layer.weight, layer.bias)
        unflatten = aten.unflatten.int(x, -1, [2, 3])
        mul_1 = aten.mul.Tensor(lyc_fx.0.layer.weight.w2, lyc_fx.0.strength)
        linear_2 = aten.linear(unflatten, mul_1)
        transpose = aten.transpose.int(linear_2, -1, -2)
        linear_3 = aten.linear(transpose, lyc_fx.0.layer.weight.w1)
        transpose_1 = aten.transpose.int(linear_3, -1, -2)
        flatten = aten.flatten.using_ints(transpose_1, -2)
        add_1 = aten.add.Tensor(linear_1, flatten)
        return (add_1)
        """,
    )


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=variant_id)
def test_chains_run_in_the_activations_dtype(case: Case) -> None:
    adapter = made("locon", case)
    before = adapted(case, adapter, dtype=torch.bfloat16)
    after = lyc_fx.lower(before, check=True)
    for site in sites(after.graph):
        assert site.node.meta["val"].dtype == torch.bfloat16
    x = case.x(torch.bfloat16)
    error = (after(x).double() - before(x).double()).norm() / before(x).double().norm()
    assert error < 2e-2


def test_a_layer_without_adapter_is_left_alone() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    lowered = lyc_fx.lower(program, check=True)
    assert [step.fired for step in lyc_fx.history(lowered)] == [0, 0, 0, 0, 0]
    assert lyc_fx.show(lowered) == lyc_fx.show(program)


class Mapped(nn.Module):
    """One layer under vmap and one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(6, 15), nn.Linear(6, 15)

    def forward(self, x: Tensor) -> Tensor:
        return torch.func.vmap(self.inside)(x) + self.outside(x)


def test_a_layer_under_vmap_stays_in_weight_space() -> None:
    torch.manual_seed(0)
    model, x = Mapped().double(), torch.randn(3, 6, dtype=torch.float64)
    variant = next((f, f.layouts[0]) for f in FAMILIES if f.name == "locon")
    adapters = many(inside=certain(variant, (15, 6)), outside=certain(variant, (15, 6), seed=1))
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, 0.7)
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, 0.7)
    lowered = lyc_fx.lower(spliced, check=True)
    assert fired(lowered) == 1
    assert any("under torch.func.vmap" in miss for miss in misses(lowered))
    for program in (spliced, lowered, lyc_fx.fold(spliced, check=True)):
        torch.testing.assert_close(program(x), live(x), rtol=1e-12, atol=1e-12)
