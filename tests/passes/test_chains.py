"""Each structure's chain: its near misses with their reasons, stacks, and what may be done with the result."""

from dataclasses import dataclass
from typing import final

import nets
import pytest
import torch
from lowering import CONV, DEPTHWISE, EVEN, GROUPED, LINEAR, adapted, fired, made, misses, same_numbers
from nets import CASES, Case
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.shaped import Additive, layouts_of
from lyc_fx.algebra import Low, Structure
from lyc_fx.algebra.shapes import Shape
from lyc_fx.errors import InvalidGraph
from lyc_fx.graph.layers import sites

NORM = next(c for c in CASES if c.name == "layer-norm")
POINT = next(c for c in CASES if c.name == "conv2d-1x1")
NORM = next(c for c in CASES if c.name == "layer-norm")
TALL = next(c for c in CASES if c.name == "conv2d-even")
SAME = next(c for c in CASES if c.name == "conv2d-same")
STRUCTURES: dict[str, tuple[Case, Adapter]] = {
    "low rank": (SAME, made("locon", SAME)),
    "Tucker": (CONV, made("locon", CONV, "mid")),
    "Kronecker": (LINEAR, made("lokr", LINEAR)),
    "Kronecker on a convolution": (CONV, made("lokr", CONV, "w1_a", "w1_b", "w2")),
    "Khatri–Rao": (LINEAR, made("loha", LINEAR, rank=2)),
    "Khatri–Rao of Tucker": (SAME, made("loha", SAME, "t1", "t2", rank=2)),
    "input map": (CONV, made("glora", CONV)),
    "columns": (CONV, made("ia3", CONV)),
    "rows": (LINEAR, made("ia3", LINEAR, rank=2)),
    "rotation": (EVEN, made("diag-oft", EVEN, "rescale")),
    "butterfly": (EVEN, made("boft", EVEN)),
    "rotation on a convolution": (GROUPED, made("diag-oft", GROUPED, "rescale")),
    "butterfly on a convolution": (TALL, made("boft", TALL, "rescale")),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_chain_compiles_and_cannot_be_folded(name: str) -> None:
    case, adapter = STRUCTURES[name]
    before = adapted(case, adapter)
    lowered = lyc_fx.lower(before, check=True)
    assert fired(lowered) == 1 and not misses(lowered)
    with pytest.raises(InvalidGraph, match="lower moves adapters to the activations"):
        lyc_fx.fold(lowered, check=True)
    torch._dynamo.reset()
    same_numbers(torch.compile(lowered, fullgraph=True, backend="eager", dynamic=True), before, case)


NEAR_MISSES: dict[str, tuple[Case, Adapter, str]] = {
    "blocks across groups": (
        CONV,
        made("diag-oft", CONV),
        "2 rows are mixed at a time, across the layer's groups of 5",
    ),
    "a stage across groups": (GROUPED, made("boft", GROUPED), "12 rows are mixed at a time"),
    "rescaled blocks across groups": (CONV, made("diag-oft", CONV, "rescale"), "2 rows are mixed"),
    "rows that groups share": (
        GROUPED,
        made("lokr", GROUPED),
        "3 rows of the left factor do not fall into the layer's 2",
    ),
    "factors of other groups": (
        CONV,
        made("ia3", CONV).with_factors({"weight": torch.randn(30)}),
        "the factor is one of 5 groups, the layer has 2",
    ),
    "a dear rank": (
        LINEAR,
        made("loha", LINEAR),
        "a chain takes 2.10 times the operations of the layer",
    ),
    "dear ranks": (
        CONV,
        made("loha", CONV, "t1", "t2"),
        "a chain takes 3.55 times the operations of the layer",
    ),
    "inputs across taps": (SAME, made("oft-input", SAME), "the inputs are mixed across the taps of the kernel"),
    "a dear rank of given norms": (
        LINEAR,
        made("loha", LINEAR, "magnitude"),
        "takes 2.10 times the operations of the layer",
    ),
    "a whole difference": (LINEAR, made("full", LINEAR), "no form that is smaller than the weight"),
    "singular vectors": (LINEAR, made("tlora", LINEAR), "the weight's own singular vectors"),
    "a norm": (NORM, made("norm", NORM), "aten.layer_norm.default does not read add as the weight of a layer"),
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_a_near_miss_is_left_alone_and_says_why(name: str) -> None:
    case, adapter, reason = NEAR_MISSES[name]
    before = adapted(case, adapter)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 0
    [miss] = misses(after)
    assert reason in miss
    same_numbers(after, before, case)


@pytest.mark.parametrize("factors", [("ia3",), ("diag-oft",), ("locon", "magnitude"), ("oft-input",)])
def test_one_map_of_the_weight_goes_with_sums_in_one_pass(factors: tuple[str, ...]) -> None:
    """And GLoRA's own pass."""
    one_map = made(*factors[:1], EVEN, *factors[1:])
    before = adapted(EVEN, made("lokr", EVEN), one_map, made("locon", EVEN), made("glora", EVEN))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 4 and not misses(after)
    wide = [site for site in sites(after.graph) if site.weight.target == "layer.weight"]
    assert len(wide) == 2
    same_numbers(after, before, EVEN)


@pytest.mark.parametrize(
    ("first", "second"),
    [(("ia3",), ("oft-input",)), (("locon", "magnitude"), ("ia3",)), (("diag-oft",), ("ia3",))],
)
def test_two_maps_of_the_weight_stay_and_let_sums_go(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    maps = [made(name, EVEN, *factors) for name, *factors in (first, second)]
    before = adapted(EVEN, made("lokr", EVEN), *maps, made("locon", EVEN))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2
    assert len(misses(after)) == 2 and all("second pass" in miss for miss in misses(after))
    same_numbers(after, before, EVEN)


def test_two_maps_of_outputs_share_one_pass() -> None:
    rows = made("ia3", EVEN, rank=2), made("diag-oft", EVEN), made("locon", EVEN, "magnitude", rank=2)
    before = adapted(EVEN, *rows, made("lokr", EVEN))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 4
    assert len([site for site in sites(after.graph) if site.weight.target == "layer.weight"]) == 1
    same_numbers(after, before, EVEN)


def test_norms_of_a_weight_that_others_change_first_stay() -> None:
    stack = made("locon", EVEN), made("lokr", EVEN, "w1", "w2", "magnitude"), made("ia3", EVEN), made("glora", EVEN)
    before = adapted(EVEN, *stack, sequential=True)
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 2
    assert len(misses(after)) == 2 and all("norms of a weight that other adapters change" in m for m in misses(after))
    same_numbers(after, before, EVEN)


def test_a_sequential_stack_is_taken_apart_from_the_last_to_the_first() -> None:
    stack = [made(name, EVEN, rank=2) for name in ("locon", "ia3", "glora", "lokr", "diag-oft", "boft", "loha")]
    before = adapted(EVEN, *stack, made("ia3", EVEN), sequential=True)
    after = lyc_fx.lower(before, check=True)
    assert not misses(after)
    same_numbers(after, before, EVEN)


@pytest.mark.parametrize("case", [CONV, DEPTHWISE], ids=lambda case: case.name)
def test_a_factor_for_each_input_channel_of_a_grouped_convolution(case: Case) -> None:
    before = adapted(case, made("ia3", case).with_factors({"weight": torch.randn(case.input[1])}))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    same_numbers(after, before, case)


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Folded(Additive):
    """A product of half as many rows as the weight has, twice as long: of low rank, but not between the channels."""

    name = "folded"
    suffixes = {"left": "left", "right": "right"}
    variants = {"": {"left": "rows r", "right": "r columns"}}
    layouts = layouts_of(variants)

    left: Tensor
    right: Tensor

    def fit(self, shape: Shape) -> None:
        pass

    def expression(self) -> Structure:
        return Low(self.left, self.right)


@pytest.mark.parametrize("case", [EVEN, CONV], ids=lambda case: case.name)
def test_a_reshaped_product_of_other_rows_is_no_low_rank_chain(case: Case) -> None:
    rows = case.logical[0] // 2
    columns = torch.Size(case.logical).numel() // rows
    before = adapted(case, Folded(left=torch.randn(rows, 2), right=torch.randn(2, columns)))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 0
    assert f"the product has {rows} rows, the layer {2 * rows} outputs" in misses(after)[0]
    same_numbers(after, before, case)


class Conv1D(nets.Conv1D):
    """A layer that scales its product and its bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, beta=0.5, alpha=2)


def test_addmm_with_factors_of_its_own_is_left_alone() -> None:
    case = Case("", lambda: Conv1D(15, 6), (4, 6), "batch _", transposed=True)
    before = adapted(case, made("ia3", case))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 0
    [miss] = misses(after)
    assert "the layer is called with beta, alpha" in miss
    same_numbers(after, before, case)


@pytest.mark.parametrize("name", ["locon", "lokr", "diag-oft", "glora", "ia3"])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_without_a_batch(name: str, groups: int) -> None:
    layer = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups)
    case = Case("", lambda: layer, (8, 7, 6), "_ height width")
    before = adapted(case, made(name, case, rank=2))
    after = lyc_fx.lower(before, check=True)
    assert fired(after) == 1
    same_numbers(after, before, case)
