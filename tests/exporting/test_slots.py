"""Programs with the adapter as an input: every family, other ranks, several sets, and what does not fit."""

from functools import cache

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lokr, lora, merged
from nets import CASES, VARIANTS, Case, Variant, certain, one, pairs, variant_id
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import BadAdapter, InvalidGraph, Unsupported
from lyc_fx.exporting.exported import to_exported_program
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.exporting.plain import plain
from lyc_fx.graph.program import facts

LINEAR, GROUPED = (next(case for case in CASES if case.name == name) for name in ("linear", "conv2d-grouped-dilated"))
NO_RANK, NOT_HERE = frozenset({"w1", "w2"}), {"magnitude", "mid", "t1", "t2"}
CHAINS = [v for v in VARIANTS if v[0].name in ("locon", "loha", "lokr") and v[1] != NO_RANK and not v[1] & NOT_HERE]
OFT = next(v for v in VARIANTS if v[0].name == "diag-oft")
TUCKER = [v for v in VARIANTS if {"mid", "t1", "t2"} & v[1]]


@cache
def program(case: Case) -> GraphModule:
    return lyc_fx.capture(case.net(torch.float32), (case.x(torch.float32),), dynamic_shapes={"x": case.dims})


def exported(adapted: GraphModule) -> tuple[ExportedProgram, Manifest]:
    made = plain(lyc_fx.slots(adapted))
    found = to_exported_program(made)
    return found, Manifest.of(made, "slots", found)


def called(found: ExportedProgram, manifest: Manifest, packed: lyc_fx.Packed, x: Tensor) -> Tensor:
    names = [value.name.removeprefix("adapter.") for value in manifest.inputs if value.name.startswith("adapter.")]
    with torch.no_grad():
        return found.module()(x, adapter={name: packed.tensors[name] for name in names}, strengths=packed.strengths)


@pytest.mark.parametrize(("variant", "case"), [*pairs([LINEAR]), *pairs([GROUPED], TUCKER)], ids=variant_id)
def test_every_family_as_an_input(variant: Variant, case: Case) -> None:
    """Of another adapter than the program was made with: as if that had been spliced in, to the bit."""
    alpha = 3.0 if variant[0].alpha_bounds else 2.0  # a bound is part of the formula
    own, other = (certain(variant, case.logical, rank=4, alpha=a, seed=s) for a, s in ((3.0, 0), (alpha, 5)))
    found, manifest = exported(lyc_fx.splice(program(case), one(own), rank=5))
    packed = lyc_fx.pack(one(other), manifest, strength=0.5)
    x = case.x(torch.float32, extra=1)
    y = called(found, manifest, packed, x)
    adapted = lyc_fx.splice(program(case), one(other), 0.5)
    with torch.no_grad():
        torch.testing.assert_close(y, lyc_fx.fold(adapted)(x), rtol=1e-5, atol=2e-5)
        assert not torch.allclose(y, program(case)(x), atol=1e-2)
        idle = called(found, manifest, lyc_fx.pack((), manifest), x) if other.inert(0.0) else y
        assert not other.inert(0.0) or torch.equal(idle, program(case)(x))


@pytest.mark.parametrize("variant", CHAINS, ids=variant_id)
@pytest.mark.parametrize("rank", [1, 2, 6])
def test_other_ranks(variant: Variant, rank: int) -> None:
    """Than the program was exported with: below (filled up, or as they are) and above."""
    other = certain(variant, LINEAR.logical, rank=rank, alpha=2.5, seed=3)
    found, manifest = of_rank_four(variant)
    x = LINEAR.x(torch.float32, extra=1)
    y = called(found, manifest, lyc_fx.pack(one(other), manifest, strength=-0.75), x)
    with torch.no_grad():
        wanted = lyc_fx.fold(lyc_fx.splice(program(LINEAR), one(other), -0.75))(x)
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=2e-5)


@cache
def of_rank_four(variant: Variant) -> tuple[ExportedProgram, Manifest]:
    own = certain(variant, LINEAR.logical, rank=4, alpha=3.0)
    return exported(lyc_fx.splice(program(LINEAR), one(own), rank=4))


@cache
def two_sets() -> tuple[ExportedProgram, Manifest]:
    return exported(lyc_fx.splice(captured(), [(lora(2, 1.0), 1.0), (lora(3, 2.0, seed=4), 1.0)], rank=4))


def run(packed: lyc_fx.Packed, manifest: Manifest, found: ExportedProgram) -> object:
    x, scale = inputs()
    names = [value.name.removeprefix("adapter.") for value in manifest.inputs if value.name.startswith("adapter.")]
    given = {name: packed.tensors[name] for name in names}
    with torch.no_grad():
        return found.module()(x, scale=scale, adapter=given, strengths=packed.strengths)


@pytest.mark.parametrize("sets", [
    [(lora(3, 2.0, seed=7), 0.7), (loha(2, 1.5), -0.4)],
    [(lokr(3.0), 0.7)],
    [(loha(2, 1.5), {"*first*": 0.5, "*": 0.25})],
], ids=["lora and loha", "lokr", "blocks"])  # fmt: skip
def test_low_rank_slots_take_all_sums(sets: list[tuple[lyc_fx.AdapterSet, float]]) -> None:
    found, manifest = two_sets()
    packed = lyc_fx.pack(sets, manifest)
    assert apart(run(packed, manifest, found), merged(sets, 1.0)) < 2e-6
    assert (packed.report is not None and len(packed.report.applied)) == sum(len(each) for each, _ in sets)


def test_lift_leaves_nothing_of_the_adapter() -> None:
    lifted = lyc_fx.slots(lyc_fx.splice(captured(), lora(2, 1.0), rank=4))
    assert not [name for name in lifted.state_dict() if "lyc_fx" in name]
    assert not [n for n in lifted.graph.find_nodes(op="get_attr") if str(n.target).startswith("lyc_fx")]
    assert lyc_fx.history(lifted)[-1].name == "lift"
    assert lyc_fx.history(lifted)[-1].fired == len(facts(lifted).slots.factors) == 6  # type: ignore[union-attr]


def test_a_captured_program_with_slots_is_called_as_the_model_is() -> None:
    adapted = lyc_fx.splice(captured(), lora(3, 2.0), 0.6, rank=3)
    lifted = lyc_fx.slots(adapted)
    slots = facts(lifted).slots
    assert slots is not None
    x, scale = inputs()
    adapter = {key: adapted.get_parameter(name) for key, name in slots.factors.items()}
    adapter |= {key: torch.stack([adapted.get_buffer(n) for n in names]) for key, names in slots.vectors.items()}
    with torch.no_grad():
        y = lifted(x, scale=scale, shift=True, adapter=adapter, strengths=torch.tensor([0.6]))
    assert apart(y, merged(lora(3, 2.0), 0.6)) < 2e-6
    with pytest.raises(lyc_fx.CaptureError, match="shift"):
        lifted(x, scale=scale, shift=False, adapter=adapter, strengths=torch.tensor([0.6]))


def test_what_cannot_be_lifted() -> None:
    with pytest.raises(InvalidGraph, match="no places for other adapters"):
        lyc_fx.slots(lyc_fx.splice(captured(), lora(2, 1.0)))
    with pytest.raises(InvalidGraph, match="staged"):
        lyc_fx.slots(lyc_fx.stage(lyc_fx.lower(lyc_fx.splice(captured(), lora(2, 1.0), rank=3))))


def test_what_does_not_go_into_the_slots() -> None:
    _, manifest = two_sets()
    with pytest.raises(BadAdapter, match="3 adapter sets, and the program has slots for 2"):
        lyc_fx.pack([(lora(2, 1.0, seed=s), 1.0) for s in range(3)], manifest)
    with pytest.raises(BadAdapter, match="does not go into the slots there"):
        lyc_fx.pack(
            one(certain(next(v for v in VARIANTS if v[0].name == "diag-oft"), (15, 6)), "lycoris_first"), manifest
        )
    made = lyc_fx.splice(captured(), loha(2, 1.0), rank=2)
    _, of_loha = exported(made)
    with pytest.raises(BadAdapter, match=r"locon does not go into the slots there \(loha"):
        lyc_fx.pack(lora(2, 1.0), of_loha)
    folded = lyc_fx.fold(made)
    plainly = plain(folded)
    with pytest.raises(Unsupported, match="takes no adapters"):
        lyc_fx.pack(lora(2, 1.0), Manifest.of(plainly, "folded", to_exported_program(plainly)))


def test_the_description_survives_as_json() -> None:
    _, manifest = two_sets()
    again = Manifest.read(manifest.text(), "file")
    assert again.form_digest == manifest.form_digest
    assert again.text() == manifest.text()
    shapes = {value.name: value.shape for value in again.inputs}
    assert shapes["x"] == ("x.shape[0]", 5, 6)
    assert again.bounds["x.shape[0]"] == [None, 64]
