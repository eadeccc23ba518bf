"""Staging: what depends on stored tensors alone is computed once per change of adapters."""

import copy

import pytest
import torch
from lowering import CONV, EVEN, LINEAR, adapted, captured, fired, made
from nets import CASES, VARIANTS, Case, Variant, one, random_for, variant_id
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.graph.program import BANK

ADDMM = next(c for c in CASES if c.name == "addmm")
STRENGTH = f"{BANK}.0.strength"


def spliced(variant: Variant, case: Case, dtype: torch.dtype) -> GraphModule | None:
    adapter = random_for(variant, case.logical, dtype=dtype)
    return None if adapter is None else lyc_fx.splice(captured(case, dtype), one(adapter), 0.7)


def staged_names(program: GraphModule) -> list[str]:
    return [name for name, _ in program.named_buffers() if name.startswith(f"{BANK}.staged.")]


def all_that_adapters_give_depends_on_inputs(program: GraphModule) -> None:
    """Otherwise it could have been staged."""
    reads: dict[object, set[str]] = {}
    for node in program.graph.nodes:
        inputs = set[str]().union(*(reads[source] for source in node.all_input_nodes))
        reads[node] = inputs | ({str(node.target)} if node.op == "get_attr" else set())
        if node.op == "placeholder":
            reads[node] = {"an input"}
        elif node.op == "call_function" and any(name.startswith(BANK) for name in inputs):
            assert "an input" in inputs, f"{node.name} is the same at every call"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_the_numbers_are_those_of_the_lowered_program(variant: Variant, dtype: torch.dtype) -> None:
    """Bit for bit, at first and after other strengths and factors; merged weights are those of a fold."""
    tried = 0
    for case in (LINEAR, ADDMM, CONV, EVEN) if dtype == torch.bfloat16 else (LINEAR, CONV):
        program = spliced(variant, case, dtype)
        if program is None:
            continue
        tried, x = tried + 1, case.x(dtype)
        lowered = lyc_fx.lower(program)
        chained, resident = lyc_fx.stage(lowered), lyc_fx.stage(program)
        for result in (chained, resident):
            assert fired(result, "stage") == len(staged_names(result)) > 0
            all_that_adapters_give_depends_on_inputs(result)
        for strength in (0.7, -1.3):
            program.get_buffer(STRENGTH).fill_(strength)  # one tensor, which all of them share
            lyc_fx.restage(chained)
            lyc_fx.restage(resident)
            assert torch.equal(resident(x), lyc_fx.fold(program)(x))
            if fired(lowered):
                assert torch.equal(chained(x), lowered(x))
            else:
                assert torch.equal(chained(x), resident(x))
    assert tried or variant[0].name in ("gain", "norm", "experts", "locon", "loha", "lokr")


def test_a_constant_of_the_models_own_is_left_alone() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.register = nn.Linear(6, 15), nn.Parameter(torch.randn(15))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * torch.sigmoid(self.register) + self.layer.weight.sum(1)

    torch.manual_seed(0)
    program = lyc_fx.capture(Net(), (torch.randn(4, 6),))
    result = lyc_fx.stage(lyc_fx.splice(program, one(made("locon", LINEAR)), 0.7))
    targets = [node.target for node in result.graph.nodes]
    assert torch.ops.aten.sigmoid.default in targets and torch.ops.aten.sum.dim_IntList in targets
    assert staged_names(result) == [f"{BANK}.staged.0"]


def test_staged_values_are_outside_of_the_state_dict_and_factors_do_not_train() -> None:
    lowered = lyc_fx.lower(adapted(EVEN, made("lokr", EVEN), dtype=torch.float32))
    result = lyc_fx.stage(lowered)
    assert result.state_dict().keys() == lowered.state_dict().keys()
    assert not [name for name, _ in result.named_parameters() if name.startswith(BANK)]
    assert [name for name, _ in lowered.named_parameters() if name.startswith(BANK)]


def test_buffers_stay_where_they_are_and_copies_have_their_own() -> None:
    result = lyc_fx.stage(lyc_fx.lower(adapted(EVEN, made("diag-oft", EVEN, "rescale"), dtype=torch.float32)))
    places = [result.get_buffer(name).data_ptr() for name in staged_names(result)]
    twin, x = copy.deepcopy(result), EVEN.x(torch.float32)
    before = result(x)
    twin.get_buffer(STRENGTH).fill_(0.1)
    lyc_fx.restage(twin)
    lyc_fx.restage(result)
    assert torch.equal(result(x), before) and not torch.equal(twin(x), before)
    assert [result.get_buffer(name).data_ptr() for name in staged_names(result)] == places


def test_compiled_it_is_not_compiled_again() -> None:
    result = lyc_fx.stage(lyc_fx.lower(adapted(LINEAR, made("locon", LINEAR, "magnitude"), dtype=torch.float32)))
    compiled, x = torch.compile(result, fullgraph=True, backend="aot_eager"), LINEAR.x(torch.float32)
    compiled(x)
    with torch.compiler.set_stance("fail_on_recompile"):
        for strength in (0.3, -2.0):
            result.get_buffer(STRENGTH).fill_(strength)
            lyc_fx.restage(result)
            torch.testing.assert_close(compiled(x), result(x))


def test_twice_is_refused_and_so_is_a_program_without_staged_values() -> None:
    lowered = lyc_fx.lower(adapted(EVEN, made("locon", EVEN)))
    with pytest.raises(lyc_fx.InvalidGraph, match=r"staged already: .* lyc_fx\.restage"):
        lyc_fx.stage(lyc_fx.stage(lowered))
    with pytest.raises(lyc_fx.WrongArgument, match=r"lyc_fx\.stage makes one"):
        lyc_fx.restage(lowered)


def test_a_merged_weight_that_overflows_is_refused() -> None:
    """Bases that are not finite themselves are left to those who made them so."""
    spliced = adapted(EVEN, made("locon", EVEN), dtype=torch.float16)
    program = lyc_fx.stage(spliced)
    program.get_buffer(STRENGTH).fill_(1e6)
    with pytest.raises(lyc_fx.BadAdapter, match=r"layer\.weight: the merged weight is not finite in torch\.float16"):
        lyc_fx.restage(program)
    with pytest.raises(lyc_fx.BadAdapter, match="not finite"):
        lyc_fx.stage(spliced)
    spliced = copy.deepcopy(spliced)
    with torch.no_grad():
        spliced.get_parameter("layer.weight")[0, 0] = float("inf")
    lyc_fx.stage(spliced)


def test_without_values_it_is_refused() -> None:
    with torch.device("meta"):
        program = lyc_fx.capture(EVEN.net(), (EVEN.x(),))
    lowered = lyc_fx.lower(lyc_fx.splice(program, one(made("locon", EVEN, "magnitude")), 0.7))
    with pytest.raises(lyc_fx.InvalidGraph, match=r"layer\.weight has no values yet"):
        lyc_fx.stage(lowered)
