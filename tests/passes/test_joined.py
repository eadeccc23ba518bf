"""Several low-rank changes of one weight: one chain of summed rank."""

import pytest
import torch
from lowering import CONV, EVEN, GROUPED, LINEAR, adapted, fired, made, misses, same_numbers
from nets import CASES, Case, many, one
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.graph.layers import sites
from lyc_fx.graph.plan import Plan
from lyc_fx.graph.program import BANK

ADDMM = next(c for c in CASES if c.name == "addmm")
TURNED = Case("transposed", lambda: nn.ConvTranspose2d(8, 12, (3, 2), stride=2, groups=2), (2, 8, 5, 7), "batch _ h w")
TABLE = Case("embedding", lambda: nn.Embedding(11, 6), (2, 5), "batch sequence")


def narrow(program: GraphModule) -> list[tuple[int, ...]]:
    """The shapes of the weights that layers read, but for the model's own."""
    found = [site.weight for site in sites(program.graph)]
    return [tuple(node.meta["val"].shape) for node in found if node.target != "layer.weight"]


@pytest.mark.parametrize("case", [LINEAR, ADDMM, CONV, GROUPED, TURNED], ids=lambda case: case.name)
def test_two_narrow_layers_for_all(case: Case) -> None:
    """LoHa of rank 2 is a product of rank 4; Tucker's core and LoKr's blocks are other structures."""
    stack = made("locon", case), made("loha", case, rank=2), made("locon", case, rank=4, seed=1)
    before = adapted(case, *stack)
    after = lyc_fx.lower(before, Plan.default(before), check=True)
    assert fired(after) == 3 and not misses(after)
    rank = 3 + 4 + 4
    assert len(narrow(after)) == 2 and all(shape[0] in (rank, 2 * rank) or shape[1] == rank for shape in narrow(after))
    same_numbers(after, before, case)


def test_a_plan_counts_joined_factors() -> None:
    before = adapted(LINEAR, made("locon", LINEAR), made("locon", LINEAR, rank=4, seed=1))
    plan = lyc_fx.plan(before)
    [row] = plan.layers
    assert row.memory is not None and row.adapters == "low rank, low rank"
    assert row.memory["chain"] == torch.float64.itemsize * (3 + 4) * (15 + 6)
    staged = lyc_fx.stage(lyc_fx.lower(before, plan.with_form("chain", row.site)))
    assert sum(b.nbytes for name, b in staged.named_buffers() if ".staged." in name) == row.memory["chain"]


def test_strengths_change_and_factors_are_exchanged() -> None:
    """Against the closed formula; joined factors are staged anew."""
    first, second = made("locon", EVEN), made("locon", EVEN, rank=2, seed=1)
    program = lyc_fx.capture(EVEN.net(), (EVEN.x(),))
    staged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, [(one(first), 0.7), (one(second), -0.4)], rank=5)))
    assert narrow(staged) == [(10, 6), (16, 10)]
    layer, x = EVEN.net().layer, EVEN.x()

    def wanted(*stack: tuple[LoCon, float]) -> Tensor:
        change = sum(s * a.scale * a.up.double() @ a.down.double() for a, s in stack)
        return nn.functional.linear(x, layer.weight + change, layer.bias)  # type: ignore[arg-type]

    assert isinstance(first, LoCon) and isinstance(second, LoCon)
    torch.testing.assert_close(staged(x), wanted((first, 0.7), (second, -0.4)), rtol=1e-12, atol=1e-12)
    staged.get_buffer(f"{BANK}.1.strength").fill_(1.5)
    lyc_fx.restage(staged)
    torch.testing.assert_close(staged(x), wanted((first, 0.7), (second, 1.5)), rtol=1e-12, atol=1e-12)
    third = made("locon", EVEN, rank=4, seed=2)
    assert isinstance(third, LoCon)
    lyc_fx.exchange(staged, [(one(third), 0.3)])
    torch.testing.assert_close(staged(x), wanted((third, 0.3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("between", [(), ("ia3",)], ids=["neighbours", "apart"])
def test_of_a_sequence_neighbours_are_joined(between: tuple[str, ...]) -> None:
    maps = [made(name, EVEN) for name in between]
    before = adapted(EVEN, made("locon", EVEN), *maps, made("locon", EVEN, rank=2, seed=1), sequential=True)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2 + len(maps) and not misses(after)
    assert len(narrow(after)) == (4 if between else 2)
    same_numbers(after, before, EVEN)


def test_what_has_no_chain_stays_and_the_others_are_joined() -> None:
    before = adapted(EVEN, made("locon", EVEN), made("tlora", EVEN), made("locon", EVEN, rank=2, seed=1))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2 and len(misses(after)) == 1
    assert (5, 6) in narrow(after) and (16, 5) in narrow(after)
    same_numbers(after, before, EVEN)


@pytest.mark.parametrize(
    ("case", "second"),
    [
        (CONV, made("locon", CONV, "mid")),
        (LINEAR, made("lokr", LINEAR, "w1", "w2_a", "w2_b")),
        (LINEAR, made("locon", LINEAR, "magnitude")),
    ],
    ids=["Tucker", "Kronecker", "DoRA"],
)
def test_other_structures_are_left_alone(case: Case, second: Adapter) -> None:
    first = made("locon", case, rank=2)
    before = adapted(case, first, second)
    after = lyc_fx.lower(before, check=True)
    apart = [narrow(lyc_fx.lower(adapted(case, each))) for each in (first, second)]
    assert fired(after) == 2 and sorted(narrow(after)) == sorted(apart[0] + apart[1])
    same_numbers(after, before, case)


def test_tables_are_not_copied() -> None:
    layer, ids = TABLE.build(), torch.tensor([[1, 4, 2], [7, 0, 10]])
    model = nn.Sequential(layer).double()
    stack = [(many(**{"0": made("locon", TABLE, rank=r)}), 0.7) for r in (2, 3)]
    before = lyc_fx.splice(lyc_fx.capture(model, (ids,)), stack)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2 and (11, 5) not in narrow(after)
    torch.testing.assert_close(after(ids), before(ids), rtol=1e-12, atol=1e-12)


class Fused(nn.Module):
    """Queries, keys and values of 4 rows each."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"to_qkv": nn.Linear(6, 12)})

    def forward(self, x: Tensor) -> Tensor:
        return self.attn["to_qkv"](x)


def test_the_same_rows_are_joined_and_others_are_not() -> None:
    model, x = Fused().double(), EVEN.x()
    part = Case("", lambda: nn.Linear(6, 4), (2, 6), "batch _")
    sets = [many(attn_to_q=made("locon", part), attn_to_v=made("locon", part, seed=s)) for s in range(2)]
    before = lyc_fx.splice(lyc_fx.capture(model, (x,)), [(each, 0.7) for each in sets])
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 4 and not misses(after)
    weights = [site.weight for site in sites(after.graph) if site.weight.target != "attn.to_qkv.weight"]
    shapes = [tuple(weight.meta["val"].shape) for weight in weights]
    assert sorted(shapes) == [(4, 6), (4, 6), (12, 6)]  # and the first factors of both parts are one
    torch.testing.assert_close(after(x), before(x), rtol=1e-12, atol=1e-12)


def test_scales_come_first() -> None:
    """With float16 activations of 1e3 a factor without its scale would overflow."""
    before = adapted(EVEN, made("locon", EVEN), made("locon", EVEN, seed=1), dtype=torch.float16)
    for name, factor in before.named_parameters():
        if name.endswith(".down"):
            factor.data.fill_(1e3)
    for index in range(2):
        before.get_buffer(f"{BANK}.{index}.strength").fill_(1e-3)
    after, x = lyc_fx.lower(before), EVEN.x(torch.float16).abs() * 30 + 30
    assert fired(after) == 2 and bool(after(x).isfinite().all())
    error = (after(x).double() - before(x).double()).norm() / before(x).double().norm()
    assert error < 2e-2


def test_gradients_go_through() -> None:
    before = adapted(LINEAR, made("locon", LINEAR), made("locon", LINEAR, seed=1))
    after, x = lyc_fx.lower(before), LINEAR.x()
    assert len(narrow(after)) == 2
    names = [name for name, _ in before.named_parameters()]
    wanted, given = (
        torch.autograd.grad(gm(x).square().sum(), [gm.get_parameter(name) for name in names]) for gm in (before, after)
    )
    for name, one_wanted, one_given in zip(names, wanted, given, strict=True):
        torch.testing.assert_close(one_given, one_wanted, rtol=1e-5, atol=1e-5, msg=name)
