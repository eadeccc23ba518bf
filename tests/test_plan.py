"""Plans: costs agree with torch's own counts, choices follow from them, and lower and stage do as planned."""

from pathlib import Path

import pytest
import torch
from lowering import CONV, EVEN, LINEAR, MORE_CASES, adapted, captured, fired, made
from nets import Case, one
from torch import nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.graph.costs.arithmetic import flops
from lyc_fx.graph.costs.kernels import kernels
from lyc_fx.graph.costs.machine import Machine, measured

SLOW_TO_LAUNCH = Machine(flops=1e12, bandwidth=1e12, launch=1e-6)
NO_LAUNCH = Machine(flops=1e9, bandwidth=1e15, launch=0.0)
WIDE = Case("wide", lambda: nn.Linear(96, 128), (2, 5, 96), "batch sequence _")


def counted(program: GraphModule, case: Case) -> tuple[int, int]:
    """By the library, at the sizes of the input, and by torch."""
    x = case.x()
    expression = flops(program.graph.nodes)
    names = {str(s): s for s in expression.free_symbols}
    sizes = {
        names[str(size.node.expr)]: x.shape[at]
        for node in program.graph.find_nodes(op="placeholder")
        for at, size in enumerate(node.meta["val"].shape)
        if isinstance(size, torch.SymInt) and str(size.node.expr) in names
    }
    with FlopCounterMode(display=False) as counter:
        program(x)
    found = expression.xreplace(sizes)
    return int(found), counter.get_total_flops()


@pytest.mark.parametrize("case", MORE_CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("name", ["locon", "lokr", "diag-oft", "glora"])
def test_operations_are_as_torch_counts_them(name: str, case: Case) -> None:
    if len(case.logical) < 2:
        pytest.skip("a norm has no products")
    try:
        adapter = made(name, case, rank=2)
    except AssertionError:
        pytest.skip("no such adapter for such a layer")
    lowered = lyc_fx.lower(adapted(case, adapter))
    if any("linalg" in str(node.target) for node in lowered.graph.nodes):
        lowered = lyc_fx.stage(lowered)  # torch counts no equations
    own, torchs = counted(lowered, case)
    assert own == torchs > 0


def test_what_follows_one_another_is_one_kernel() -> None:
    class Net(nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            y = torch.nn.functional.linear(torch.relu(x) * 2, w).flatten(-2)
            return torch.sigmoid(y.unflatten(-1, (3, 5))) + 1

    program = lyc_fx.capture(Net(), (torch.randn(2, 3, 4), torch.randn(5, 4)))
    product, before, after = kernels(list(program.graph.nodes))
    assert [k.flops for k in (product, before, after)] == [2 * 30 * 4, 0, 0]
    assert [k.traffic for k in (product, before, after)] == [4 * (24 + 20 + 30), 4 * 48, 4 * 60]


def test_a_chain_or_the_merged_weight_as_arithmetic_has_it() -> None:
    """A product of rank 2 saves work beside 96 × 128; one of rank 81 does not."""
    for name, rank, wanted in (("locon", 2, "chain"), ("locon", 90, "resident"), ("loha", 9, "resident")):
        program = adapted(WIDE, made(name, WIDE, rank=rank), dtype=torch.float32)
        plan = lyc_fx.plan(program, machine=NO_LAUNCH)
        [layer] = plan.layers
        assert layer.form == wanted and layer.weight == "layer.weight"
        assert layer.ratios is not None and layer.memory is not None
        extra = rank**2 if name == "loha" else rank
        assert layer.ratios["chain"] == pytest.approx(1 + extra * (96 + 128) / (96 * 128), rel=0.02)
        assert layer.ratios["resident"] == 1.0
        computed = extra * (96 + 128) if name == "loha" else rank * 96  # of a product the scaled factor alone
        assert layer.memory == {"resident": 96 * 128 * 4, "rebuilt": 0, "chain": computed * 4}


def test_memory_goes_where_it_saves_most() -> None:
    torch.manual_seed(0)
    shapes = ((128, 96), (64, 128))
    model = nn.Sequential(*(nn.Linear(inner, out) for out, inner in shapes))
    program = lyc_fx.capture(model, (torch.randn(4, 96),))
    cases = [Case("", lambda s=s: nn.Linear(s[1], s[0]), (2, s[1]), "n _") for s in shapes]  # type: ignore[misc]
    entries = [Entry(str(n), "weight", made("loha", case, rank=9), ("k",)) for n, case in enumerate(cases)]
    before = lyc_fx.splice(program, AdapterSet(tuple(entries)), 0.7)
    first, second = (
        128 * 96 * 4,
        64 * 128 * 4,
    )  # the second saves 192 for each 64 · 128, the first 224 for each 128 · 96
    for memory, forms in ((None, "rr"), (first + second, "rr"), (first, "cr"), (second, "cr"), (0, "cc")):
        plan = lyc_fx.plan(before, memory=memory, machine=NO_LAUNCH)
        assert [{"r": "resident", "c": "chain"}[f] for f in forms] == [each.form for each in plan.layers]
        staged = lyc_fx.stage(lyc_fx.lower(before, plan))
        x = torch.randn(4, 96)
        torch.testing.assert_close(staged(x), before(x), rtol=1e-4, atol=1e-3)  # of outputs up to 1e3
        assert fired(lyc_fx.lower(before, plan)) == forms.count("c")


def test_a_weight_that_is_to_be_rebuilt_is_left_to_every_call() -> None:
    before = adapted(EVEN, made("tlora", EVEN), dtype=torch.float32)
    for form, count in (("rebuilt", 0), ("resident", 1)):
        plan = lyc_fx.plan(before, machine=NO_LAUNCH).with_form(form, "linear")  # type: ignore[arg-type]
        staged = lyc_fx.stage(lyc_fx.lower(before, plan))
        assert fired(staged, "stage") == count
        assert any("svd" in str(node.target) for node in staged.graph.nodes) == (form == "rebuilt")
        torch.testing.assert_close(staged(EVEN.x(torch.float32)), before(EVEN.x(torch.float32)), rtol=1e-4, atol=1e-4)


def test_where_the_choice_flips() -> None:
    """Below that size a chain is predicted to be faster than a rebuilt weight, from there on it is not."""
    program = adapted(WIDE, made("locon", WIDE, rank=4), dtype=torch.float32)
    [layer] = lyc_fx.plan(program, machine=NO_LAUNCH).layers
    words = layer.flips.split()
    assert words[:2] == ["chain", "below"] and words[-2:] == ["rebuilt", "above"]
    name, at = words[2], int(words[4].rstrip(","))
    for size, chain_first in ((at - 1, True), (at, False)):
        [row] = lyc_fx.plan(program, machine=NO_LAUNCH, sizes={name: size}).layers
        assert row.ratios is not None
        assert (row.ratios["chain"] < row.ratios["rebuilt"]) == chain_first
    with pytest.raises(lyc_fx.WrongArgument, match=r"no dynamic size tokens: there are x\.shape\[0\], x\.shape\[1\]"):
        lyc_fx.plan(program, sizes={"tokens": 3})


def test_a_plan_is_printed_edited_saved_and_loaded(tmp_path: Path) -> None:
    plan = lyc_fx.plan(adapted(CONV, made("locon", CONV)), machine=SLOW_TO_LAUNCH)
    header, row = str(plan).splitlines()
    assert header.split()[:4] == ["layer", "form", "weight", "adapters"]
    assert row.split()[0] == "conv2d" and "×" in row
    plan.save(tmp_path / "plan.json")
    assert lyc_fx.Plan.load(tmp_path / "plan.json") == plan
    with pytest.raises(lyc_fx.WrongArgument, match="conv3d is no adapted layer of the plan, which has conv2d"):
        plan.with_form("chain", "conv3d")
    with pytest.raises(lyc_fx.WrongArgument, match="folded is no form: use chain, resident, rebuilt"):
        plan.with_form("folded", "conv2d")  # type: ignore[arg-type]
    for text in ("{", "[3]", '[{"site": "conv2d", "form": "folded"}]', '[{"name": "conv2d"}]'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(lyc_fx.BadFile, match=r"plan\.json is no plan"):
            lyc_fx.Plan.load(tmp_path / "plan.json")
    with pytest.raises(lyc_fx.BadFile, match=r"missing\.json"):
        lyc_fx.Plan.load(tmp_path / "missing.json")


def test_a_program_without_adapters_has_an_empty_plan() -> None:
    plan = lyc_fx.plan(captured(LINEAR, torch.float32), machine=NO_LAUNCH)
    assert plan.layers == () and str(plan) == "no adapted layers"


def test_this_machine_is_measured() -> None:
    machine = measured(torch.device("cpu"), torch.float32)
    assert machine is measured(torch.device("cpu"), torch.float32)
    assert machine.flops > 1e8 and machine.bandwidth > 1e7 and 0 < machine.launch < 1e-2
    program = lyc_fx.splice(captured(LINEAR, torch.float32), one(made("locon", LINEAR)), 0.7)
    assert lyc_fx.plan(program).layers[0].ratios
