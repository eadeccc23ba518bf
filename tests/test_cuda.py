"""On a GPU: the roads through a live model and through its graph, for every family, layer kind and dtype.

    pytest tests/test_cuda.py

A GPU sums in another order than a CPU does, so that float64 agrees to 1e-12 rather than to the bit, and a value that
lies on a tie to that precision may go either way.
"""

import copy
from pathlib import Path

import pytest
import torch
from nets import CASES, Case, Layers, Variant, certain, many, one, pairs, random_for, variant_id
from oracle import adapted
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.numerics.rounding import nearest

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

STRENGTH = 0.7
GPU = torch.device("cuda")
LOW = (torch.float32, torch.bfloat16, torch.float16)
LOCON = next(family for family in FAMILIES if family.name == "locon")


def wanted(case: Case, variant: Variant, seed: int, base: Tensor) -> tuple[lyc_fx.AdapterSet, Tensor]:
    """An adapter set, and the merged weight by the closed formula in float64."""
    adapter = certain(variant, case.logical, seed=seed)
    base = base.detach().cpu()
    merged = adapted(adapter, base.t() if case.transposed else base, STRENGTH)
    return one(adapter), merged.t() if case.transposed else merged


def near(weight: Tensor, exact: Tensor) -> None:
    """The right rounding of a value within 1e-12 of the exact one."""
    assert weight.device.type == "cuda"
    found = weight.detach().cpu()
    if found.dtype == torch.float64:
        torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-12)
        return
    slack = 1e-12 * exact.abs().max()
    low, high = (nearest(exact + d, found.dtype) for d in (-slack, slack))
    assert ((low <= found) & (found <= high)).all()


@pytest.mark.parametrize("case", CASES, ids=variant_id)
def test_merged_weights(case: Case) -> None:
    for seed, (variant, _) in enumerate(pairs([case])):
        for dtype in (torch.float64, LOW[seed % 3]):
            model = case.net(dtype).to(GPU)
            adapters, exact = wanted(case, variant, seed, model.layer.weight)
            lyc_fx.merge(model, adapters, STRENGTH)
            near(model.layer.weight, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_no_tie_is_rounded_twice(dtype: torch.dtype) -> None:
    """Of a million elements torch's own cast gets some ten wrong."""
    model = Layers(nn.Linear(1000, 1003)).to(GPU, dtype)
    adapter = certain((LOCON, LOCON.layouts[0]), (1003, 1000), rank=5)
    exact = adapted(adapter, model.layer.weight.detach().cpu(), STRENGTH)
    lyc_fx.merge(model, one(adapter), STRENGTH)
    near(model.layer.weight, exact)


@pytest.mark.parametrize("case", CASES, ids=variant_id)
def test_graphs(case: Case) -> None:
    """Spliced, folded and lowered, each pass checked by running both programs."""
    model, x = case.net().to(GPU), case.x().to(GPU)
    program = lyc_fx.capture(model, (x,), dynamic_shapes={"x": case.dims}, check=True)
    for seed, (variant, _) in enumerate(pairs([case])):
        adapters, exact = wanted(case, variant, seed, model.layer.weight)
        spliced = lyc_fx.splice(program, adapters, STRENGTH)
        folded, lowered = lyc_fx.fold(spliced, check=True), lyc_fx.lower(spliced, check=True)
        near(folded.get_parameter("layer.weight"), exact)
        live = copy.deepcopy(model)
        lyc_fx.merge(live, adapters, STRENGTH)
        for inputs in (x, case.x(extra=2).to(GPU)):
            for found in (spliced(inputs), folded(inputs), lowered(inputs)):
                torch.testing.assert_close(found, live(inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.name != "experts"], ids=lambda family: family.name)
@pytest.mark.filterwarnings("ignore:TensorFloat32")
def test_compiled(family: type) -> None:
    """One compilation, whatever the strength."""
    variant, case = next((v, c) for v, c in pairs(CASES) if v[0] is family)
    torch.compiler.reset()
    model, x = case.net(torch.float32).to(GPU), case.x(torch.float32).to(GPU)
    adapters, _ = wanted(case, variant, 1, model.layer.weight)
    spliced = lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, STRENGTH)
    lowered = lyc_fx.lower(spliced)
    compiled = torch.compile(lowered, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for strength in (0.7, -0.4, 1.3):
            for program in (lowered, spliced):
                program.get_buffer("lyc_fx.0.strength").fill_(strength)
            torch.testing.assert_close(compiled(x), spliced(x), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("case", CASES, ids=variant_id)
def test_unmerged(case: Case) -> None:
    """Staged, exchanged and attached, chained and resident, against a merged model."""
    model, x = case.net().to(GPU), case.x().to(GPU)
    program = lyc_fx.capture(model, (x,), dynamic_shapes={"x": case.dims})
    for variant, _ in pairs([case]):
        first, second = (one(certain(variant, case.logical, seed=seed)) for seed in (0, 1))
        merged = copy.deepcopy(model)
        lyc_fx.merge(merged, second, STRENGTH)
        exchanged = lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(program, first, 0.3, rank=3)))
        lyc_fx.exchange(exchanged, second, STRENGTH)
        found = [exchanged(x)]
        if not case.transposed:  # a class of the tests, which the model's modules do not show to store `(in, out)`
            for resident in (False, True):
                with lyc_fx.attach(model, first, 0.3, rank=3, resident=resident) as attached:
                    attached.set(second, 0.1)
                    attached.set_strengths(STRENGTH)
                    found.append(model(x))
        for y in found:
            assert y.device == x.device
            torch.testing.assert_close(y, merged(x), rtol=1e-8, atol=1e-8)


def test_live_swaps_and_restores() -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.Linear(24, 40) for name in "ab"}).to(GPU, torch.bfloat16)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (
        many(**{name: random_for((LOCON, LOCON.layouts[0]), (40, 24), seed=seed + i) for i, name in enumerate("ab")})
        for seed in (1, 5)
    )
    live = lyc_fx.live(model)
    for choice in ({first: 0.7}, {second: -0.3}, {first: 0.5, second: 0.4}):
        live.set(choice)
        fresh = nn.ModuleDict({name: nn.Linear(24, 40) for name in "ab"}).to(GPU, torch.bfloat16)
        fresh.load_state_dict(base)
        lyc_fx.merge(fresh, choice)
        assert all(torch.equal(t, model.state_dict()[n]) for n, t in fresh.state_dict().items())
        assert not torch.equal(model["a"].weight, base["a.weight"])
    live.restore()
    assert all(torch.equal(t, base[n]) for n, t in model.state_dict().items())


def test_a_model_on_two_devices() -> None:
    model = nn.ModuleDict({name: nn.Linear(24, 40) for name in "ab"})
    model["b"].to(GPU)
    adapters = many(**{name: random_for((LOCON, LOCON.layouts[0]), (40, 24), seed=i) for i, name in enumerate("ab")})
    exact = {
        name: adapted(adapters.entries[i].adapter, model[name].weight.detach().cpu(), STRENGTH)
        for i, name in enumerate("ab")
    }
    lyc_fx.merge(model, adapters, STRENGTH)
    assert model["a"].weight.device.type == "cpu"
    near(model["b"].weight, exact["b"])
    near(model["a"].weight.to(GPU), exact["a"])


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 reads so
def test_saved_and_loaded(tmp_path: Path) -> None:
    case = CASES[0]
    model, x = case.net().to(GPU), case.x().to(GPU)
    adapters, _ = wanted(case, (LOCON, LOCON.layouts[0]), 0, model.layer.weight)
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (x,)), adapters, STRENGTH))
    lyc_fx.export(folded, tmp_path / "folded.pt2")
    loaded = torch.export.load(tmp_path / "folded.pt2").module()
    torch.testing.assert_close(loaded(x), folded(x))
    assert not torch.equal(loaded(x), model(x))


def test_random_numbers_and_autocast_are_left_alone() -> None:
    case = CASES[0]
    model, x = case.net().to(GPU), case.x().to(GPU)
    adapters, exact = wanted(case, (LOCON, LOCON.layouts[0]), 0, model.layer.weight)
    state = torch.cuda.get_rng_state()
    with torch.autocast("cuda", torch.float16):
        program = lyc_fx.capture(model, (x,), check=True)
        folded = lyc_fx.fold(lyc_fx.splice(program, adapters, STRENGTH), check=True)
    near(folded.get_parameter("layer.weight"), exact)
    assert torch.equal(state, torch.cuda.get_rng_state())
