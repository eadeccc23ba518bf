"""distribute: fires where an exact chain exists, says why where not, keeps numbers and shapes."""

import pytest
import torch
from golden import expect
from nets import CASES, VARIANTS, Case, one, random_for, variant_id
from torch import nn

import lyc_fx
from lyc_fx.adapters import AdapterSet
from lyc_fx.families import FAMILIES, Adapter
from lyc_fx.layers import sites
from lyc_fx.plan import Plan

Variant = tuple[type[Adapter], frozenset[str]]
LOCON, LOHA, LOKR = (next(f for f in FAMILIES if f.name == name) for name in ("locon", "loha", "lokr"))
LINEAR, CONV = CASES[0], next(c for c in CASES if c.name == "conv2d-grouped-dilated")


def has_chain(variant: Variant, case: Case) -> bool:
    """What the docs promise: LoCon everywhere, LoKr on linear layers; nothing that is decomposed."""
    family, layout = variant
    if "magnitude" in layout or len(case.logical) < 2:
        return False
    return family is LOCON or (family is LOKR and len(case.logical) == 2)


def adapted(case: Case, *adapters: Adapter, dtype: torch.dtype = torch.float64) -> torch.fx.GraphModule:
    program = lyc_fx.capture(case.net(dtype), (case.x(dtype),), dynamic_shapes={"x": case.dims})
    return lyc_fx.splice(program, [(one(a), 0.7 + i) for i, a in enumerate(adapters)])


def fired(program: torch.fx.GraphModule, name: str = "distribute") -> int:
    return sum(step.fired for step in lyc_fx.history(program) if step.name == name)


@pytest.mark.parametrize("case", CASES, ids=variant_id)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_fires_exactly_where_a_chain_exists_and_keeps_the_numbers(variant: Variant, case: Case) -> None:
    adapter = random_for(variant, case.logical)
    if adapter is None:
        pytest.skip("no such variant for this layer")
    before = adapted(case, adapter)
    after = lyc_fx.lower(before)
    assert fired(after) == has_chain(variant, case)
    assert len(list(sites(before.graph))) == 1
    assert len(list(sites(after.graph))) == (1 if not has_chain(variant, case) else 4 if "mid" in variant[1] else 3)
    for extra in (0, 3):
        x = case.x(extra=extra)
        torch.testing.assert_close(after(x), before(x), rtol=1e-11, atol=1e-11)
    shapes = [n.all_input_nodes[0].meta["val"].shape for g in (before, after) for n in g.graph.find_nodes(op="output")]
    assert str(shapes[0]) == str(shapes[1])
    assert any(isinstance(size, torch.SymInt) for size in shapes[0])


def test_a_hadamard_product_says_why_it_has_no_chain() -> None:
    adapter = random_for((LOHA, LOHA.layouts[0]), LINEAR.logical)
    assert adapter is not None
    lowered = lyc_fx.lower(adapted(LINEAR, adapter))
    assert fired(lowered) == 0
    [miss] = [m for step in lyc_fx.history(lowered) for m in step.misses]
    assert miss.startswith("linear: ") and "product of two full tensors has no chain" in miss, miss


def test_several_adapters_become_several_chains_and_what_has_none_stays() -> None:
    stack = [(v, random_for(v, LINEAR.logical, seed=i)) for i, v in enumerate(VARIANTS)]
    adapters = [adapter for _, adapter in stack if adapter is not None]
    before = adapted(LINEAR, *adapters)
    after = lyc_fx.lower(before)
    chained = [v for v, adapter in stack if adapter is not None and has_chain(v, LINEAR)]
    assert 0 < len(chained) < len(adapters)
    assert fired(after) == len(chained)
    torch.testing.assert_close(after(LINEAR.x()), before(LINEAR.x()), rtol=1e-11, atol=1e-11)


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
    assert str(plan) == "linear: chain\nlinear_1: chain"
    after = lyc_fx.lower(before, plan.only("linear_1"))
    assert fired(after) == 1
    assert str(plan.only("linear_1")) == "linear_1: chain\nlinear: weight space"
    torch.testing.assert_close(after(LINEAR.x()), before(LINEAR.x()), rtol=1e-12, atol=1e-12)


def test_the_low_rank_chain_as_text() -> None:
    adapter = random_for((LOCON, LOCON.layouts[0]), LINEAR.logical)
    assert adapter is not None
    expect(
        lyc_fx.show(lyc_fx.lower(adapted(LINEAR, adapter, dtype=torch.float32)), shapes=True),
        """
        mul = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)  # float64 ()
        x = input  # float32 (s77, s27, 6)
        linear_1 = aten.linear(x, lyc_fx.0.layer.weight.down)  # float32 (s77, s27, 3)
        linear_2 = aten.linear(linear_1, lyc_fx.0.layer.weight.up)  # float32 (s77, s27, 15)
        linear_3 = aten.linear(x, layer.weight, layer.bias)  # float32 (s77, s27, 15)
        mul_2 = aten.mul.Tensor(linear_2, mul)  # float32 (s77, s27, 15)
        add_1 = aten.add.Tensor(linear_3, mul_2)  # float32 (s77, s27, 15)
        return (add_1)
        """,
    )


def test_the_tucker_chain_on_a_grouped_convolution_as_text() -> None:
    adapter = random_for((LOCON, LOCON.layouts[1]), CONV.logical)
    assert adapter is not None
    expect(
        lyc_fx.show(lyc_fx.lower(adapted(CONV, adapter, dtype=torch.float32))),
        """
        mul = aten.mul.Tensor(lyc_fx.0.strength, 0.6666666666666666)
        x = input
        repeat = aten.repeat(lyc_fx.0.layer.weight.down, [2, 1, 1, 1])
        conv2d_1 = aten.conv2d(x, repeat, None, [1, 1], [0, 0], [1, 1], 2)
        repeat_1 = aten.repeat(lyc_fx.0.layer.weight.mid, [2, 1, 1, 1])
        conv2d_2 = aten.conv2d(conv2d_1, repeat_1, None, [2, 1], [1, 2], [2, 1], 2)
        conv2d_3 = aten.conv2d(conv2d_2, lyc_fx.0.layer.weight.up, None, [1, 1], [0, 0], [1, 1], 2)
        conv2d_4 = aten.conv2d(x, layer.weight, layer.bias, [2, 1], [1, 2], [2, 1], 2)
        mul_2 = aten.mul.Tensor(conv2d_3, mul)
        add_1 = aten.add.Tensor(conv2d_4, mul_2)
        return (add_1)
        """,
    )


def test_the_kronecker_chain_never_builds_the_dense_product() -> None:
    adapter = random_for((LOKR, LOKR.layouts[0]), LINEAR.logical)
    assert adapter is not None
    lowered = lyc_fx.lower(adapted(LINEAR, adapter, dtype=torch.float32))
    assert not [n for n in lowered.graph.nodes if n.target is torch.ops.aten.kron.default]
    expect(
        lyc_fx.show(lowered),
        """
        x = input
        unflatten = aten.unflatten.int(x, -1, [2, 3])
        linear_1 = aten.linear(unflatten, lyc_fx.0.layer.weight.w2)
        transpose = aten.transpose.int(linear_1, -1, -2)
        linear_2 = aten.linear(transpose, lyc_fx.0.layer.weight.w1)
        transpose_1 = aten.transpose.int(linear_2, -1, -2)
        flatten = aten.flatten.using_ints(transpose_1, -2)
        linear_3 = aten.linear(x, layer.weight, layer.bias)
        mul_2 = aten.mul.Tensor(flatten, lyc_fx.0.strength)
        add_1 = aten.add.Tensor(linear_3, mul_2)
        return (add_1)
        """,
    )


@pytest.mark.parametrize("case", [LINEAR, CONV], ids=variant_id)
def test_chains_run_in_the_activations_dtype(case: Case) -> None:
    adapter = random_for((LOCON, LOCON.layouts[0]), case.logical)
    assert adapter is not None
    before = adapted(case, adapter, dtype=torch.bfloat16)
    after = lyc_fx.lower(before)
    for site in sites(after.graph):
        assert site.node.meta["val"].dtype == torch.bfloat16
    x = case.x(torch.bfloat16)
    error = (after(x).double() - before(x).double()).norm() / before(x).double().norm()
    assert error < 2e-2


def test_a_layer_without_adapter_is_left_alone() -> None:
    program = lyc_fx.capture(LINEAR.net(), (LINEAR.x(),))
    lowered = lyc_fx.lower(program)
    assert [step.fired for step in lyc_fx.history(lowered)] == [0, 0, 0, 0]
    assert lyc_fx.show(lowered) == lyc_fx.show(program)
