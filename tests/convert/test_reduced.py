"""Reducing LoRA to a lower rank, and what the metadata of a converted file says."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from nets import certain, many

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.conversion import convert
from lyc_fx.errors import Unsupported


@pytest.mark.parametrize("shape", [(15, 7), (15, 7, 3, 2)])
def test_lora_of_a_higher_rank_is_reduced(shape: tuple[int, ...]) -> None:
    """To the best approximation of its change, whose error is that of the singular values left out."""
    adapter = certain((LoCon, LoCon.layouts[0]), shape, rank=6, alpha=4.0, dtype=torch.float64)
    low = certain((LoCon, LoCon.layouts[0]), shape, rank=2, alpha=3.0)
    conversion = convert(
        many(high=adapter, low=low), "lycoris", like={"high.weight": shape, "low.weight": shape}, svd=3
    )
    made = {each.module: each for each in conversion.modules}
    change, found = (
        each.to(torch.float64).delta(shape).reshape(15, -1) for each in (adapter, made["lycoris_high"].adapter)
    )
    u, s, vh = torch.linalg.svd(change, full_matrices=False)
    torch.testing.assert_close(found, u[:, :3] * s[:3] @ vh[:3], rtol=1e-5, atol=1e-5)
    assert made["lycoris_high"].error == pytest.approx(float(s[3:].norm() / s.norm()))
    assert (made["lycoris_high"].adapter.rank, made["lycoris_high"].how) == (3, ("svd",))
    assert (made["lycoris_low"].adapter.rank, made["lycoris_low"].error) == (2, None)


def test_what_has_no_matrix_cannot_be_reduced() -> None:
    adapter = certain((LoCon, next(e for e in LoCon.layouts if "magnitude" in e)), (15, 7), rank=6)
    with pytest.raises(Unsupported, match=r"1 adapter cannot have rank 3:\n  a: the change by locon dora depends on"):
        convert(many(a=adapter), "lycoris", like={"a.weight": (15, 7)}, svd=3)


@pytest.mark.parametrize(
    ("variant", "to", "svd", "module", "dim"),
    [
        ("locon", "kohya", None, "networks.lora", "9"),
        ("locon", "lycoris", None, "lycoris.kohya", "9"),
        ("locon", "kohya", 2, "networks.lora", "2"),
        ("loha", "kohya", None, "lycoris.kohya", "9"),
        ("locon", "peft", None, None, "9"),
        ("locon", "comfyui", None, None, "9"),
        ("loha", "diffusers", None, None, "9"),
    ],
)
def test_the_metadata_is_true_of_the_new_file(
    variant: str, to: str, svd: int | None, module: str | None, dim: str
) -> None:
    family = next(f for f in FAMILIES if f.name == variant)
    adapters = many(lycoris_a=certain((family, family.layouts[0]), (15, 7), rank=3))
    said = {
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": "9",
        "ss_network_args": '{"algo": "x"}',
        "other": "1",
    }
    conversion = convert(replace(adapters, metadata=said), to, like={"a.weight": (15, 7)}, svd=svd)
    found = conversion.contents.metadata
    assert found.get("ss_network_module") == module
    assert found["ss_network_dim"] == dim and found["other"] == "1"
    assert ("ss_network_args" in found) == (module is not None and svd is None)


def test_peft_has_a_directory_for_each_component(tmp_path: Path) -> None:
    shapes = {"unet.a.weight": (15, 7), "text_encoder.b.weight": (5, 6), "text_encoder.c.weight": (3, 4)}
    locon = LoCon, LoCon.layouts[0]
    adapters = many(
        lora_unet_a=certain(locon, (15, 7)), lora_te1_b=certain(locon, (5, 6)), lora_te1_c=certain(locon, (3, 4))
    )
    for force in (False, True):  # what is there is ours
        convert(adapters, "peft", like=shapes).save(tmp_path / "out", force=force)
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["text_encoder", "unet"]
    for component, modules in (("unet", ["a"]), ("text_encoder", ["b", "c"])):
        read = lyc_fx.load(tmp_path / "out" / component)
        assert sorted(entry.module for entry in read.entries) == modules
        own = {n.removeprefix(f"{component}."): s for n, s in shapes.items() if n.startswith(component)}
        assert lyc_fx.coverage(read, own).complete
    gpt = {"transformer.h.0.weight": (15, 7), "lm_head.weight": (5, 6)}  # a module's own name, not a component's
    both = many(**{"transformer.h.0": certain(locon, (15, 7)), "lm_head": certain(locon, (5, 6))})
    assert convert(both, "peft", like=gpt).contents.config is not None
