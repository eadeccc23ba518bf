"""Other names for a file's modules: whole segments, once, and never two names for one."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.renaming import rename
from lyc_fx.errors import BadAdapter, WrongArgument

STRENGTH = 0.7


@pytest.mark.parametrize(
    ("name", "table", "wanted"),
    [
        ("net.blocks.0.to_q", {"net": "transformer"}, "transformer.blocks.0.to_q"),
        ("net.blocks.0.to_q", {"net.": ""}, "blocks.0.to_q"),
        ("net.blocks.0.to_q", {"to_q": "attn.q"}, "net.blocks.0.attn.q"),
        ("net.blocks.0.to_q", {"to": "x", "block": "y", "q": "z"}, "net.blocks.0.to_q"),
        ("net.blocks.0.net", {"net": "n"}, "n.blocks.0.n"),
        ("a.b.c", {"a": "b", "b": "a"}, "b.a.c"),
        ("a.b.c", {"a": "x", "a.b": "y"}, "y.c"),
        ("a.b.c", {"": "unet."}, "unet.a.b.c"),
        ("a.b.c", {"": "unet.", "c": "d"}, "unet.a.b.d"),
        ("lora_unet_my_block_0_fc", {"my_block": "layers"}, "lora_unet_layers_0_fc"),
        ("lora_unet_my_block_0_fc", {"my.block": "layers.1"}, "lora_unet_layers_1_0_fc"),
        ("lora_unet_my_block_0_fc", {"lora_unet": "lora_te"}, "lora_te_my_block_0_fc"),
        ("lora_unet_my_block_0_fc", {"y_block": "x"}, "lora_unet_my_block_0_fc"),
        ("head", {"head": "lm_head"}, "lm_head"),
    ],
)
def test_whole_segments_are_renamed_once(name: str, table: dict[str, str], wanted: str) -> None:
    assert rename(name, table) == wanted


def factors(prefix: str) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(3)
    return {
        f"{prefix}{name}.lora_{side}.weight": torch.randn(shape, generator=rng, dtype=torch.float64)
        for name, out in (("0.fc", 9), ("1.fc", 7))
        for side, shape in (("B", (out, 2)), ("A", (2, 6)))
    }


def model() -> nn.Module:
    torch.manual_seed(0)
    blocks = nn.ModuleList([nn.ModuleDict({"fc": nn.Linear(6, out)}) for out in (9, 7)])
    return nn.ModuleDict({"layers": blocks}).double()


def wanted(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    state = {name: value.clone() for name, value in model().state_dict().items()}
    for name in ("0.fc", "1.fc"):
        up, down = (tensors[f"{prefix}{name}.lora_{side}.weight"] for side in "BA")
        state[f"layers.{name}.weight"] += STRENGTH * up @ down
    return state


def test_renamed_adapters_find_their_weights() -> None:
    tensors, net = factors("backbone.stages."), model()
    adapters = lyc_fx.load(tensors)
    with pytest.raises(BadAdapter, match="no such weight"):
        lyc_fx.merge(net, adapters, STRENGTH)
    report = lyc_fx.merge(net, adapters.renamed({"backbone.stages": "layers"}), STRENGTH)
    torch.testing.assert_close(dict(net.state_dict()), wanted(tensors, "backbone.stages."), rtol=1e-12, atol=1e-12)
    assert {key for row in report.applied for key in row.keys} == set(tensors)  # the file's
    assert [entry.module for entry in adapters.entries] == ["backbone.stages.0.fc", "backbone.stages.1.fc"]


def test_what_cannot_be_renamed() -> None:
    adapters = lyc_fx.load(factors("stages."))
    for table, said in (
        ({"stage": "layers"}, "<tensors>: no module has 'stage' as whole segments of its name; the first are stages"),
        ({"stages": "layers", "7": "x"}, "no module has '7'"),
        ({"0": "1"}, "renaming turns stages.0.fc and stages.1.fc into stages.1.fc"),
        ({"0": "", "1": ""}, "renaming turns stages.0.fc and stages.1.fc into stages.fc"),
    ):  # fmt: skip
        with pytest.raises(BadAdapter) as caught:
            adapters.renamed(table)
        assert said in str(caught.value)
    for wrong in ({}, {"stages": 3}, "stages=layers", {".": "x"}, None):
        with pytest.raises(WrongArgument):
            adapters.renamed(wrong)  # type: ignore[arg-type]


def test_the_command_line_renames(lyc, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors, base, style, out = factors("my.net."), *(tmp_path / f"{n}.safetensors" for n in ("base", "style", "out"))
    save_file(model().state_dict(), base)
    save_file(tensors, style)
    rename = ("--rename", "my.net=layers")
    said = lyc("fold", base, style, "-o", out, "--strength", str(STRENGTH), *rename)
    assert said.code == 0, said.err
    torch.testing.assert_close(load_file(out), wanted(tensors, "my.net."), rtol=1e-12, atol=1e-12)
    covered = json.loads(lyc("coverage", base, style, *rename, "--json").out)
    assert covered["complete"] and {key["key"] for key in covered["keys"]} == set(tensors)
    made = tmp_path / "made.safetensors"
    assert lyc("convert", style, "--to", "lycoris", "-o", made, *rename).code == 0
    assert "lycoris_layers_0_fc.lora_up.weight" in load_file(made)
    # In one of two files; in neither; no pair; two names for one
    save_file(factors("layers."), tmp_path / "plain.safetensors")
    both = (base, style, tmp_path / "plain.safetensors", "--dry-run")
    assert lyc("fold", *both, *rename).code == 0
    said = lyc("fold", *both, *rename, "--rename", "nets=x")
    assert said.code == 1 and "no module has 'nets' as whole segments of its name; the first is my.net.0.fc" in said.err
    assert lyc("fold", *both, "--rename", "my.net").code == 2
    said = lyc("fold", base, style, "--dry-run", *rename, "--rename", "0=1")
    assert said.code == 1 and "renaming turns my.net.0.fc and my.net.1.fc into layers.1.fc" in said.err
