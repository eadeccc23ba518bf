"""`coverage`: no key and no weight is left out of the account."""

import json
from pathlib import Path

import pytest
import torch
from conversions import made
from nets import one, random_for
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.cli import app
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.inspection.shapes import shapes_of


def locon(*shape: int) -> LoCon:
    adapter = random_for((LoCon, LoCon.layouts[0]), shape)
    assert isinstance(adapter, LoCon)
    return adapter


def mixed() -> AdapterSet:
    """One adapter that fits, one for no module, one that does not fit, one of a bias; and a key of no format."""
    entries = (
        Entry("lycoris_fc", "weight", locon(15, 6), ("lycoris_fc.lora_up.weight", "lycoris_fc.lora_down.weight")),
        Entry("lycoris_block_out_prj", "weight", locon(4, 15), ("lycoris_block_out_prj.lora_up.weight",)),
        Entry("lycoris_block_conv", "weight", locon(9, 6, 3, 3), ("lycoris_block_conv.lora_up.weight",)),
        Entry("lycoris_fc", "bias", Full(diff=torch.ones(15)), ("lycoris_fc.diff_b",)),
    )
    return AdapterSet(entries, "mixed.safetensors", unread=("what.is.this",))


def test_every_key_and_every_weight_is_accounted_for() -> None:
    found = lyc_fx.coverage(mixed(), made("net"))
    assert not found.complete
    assert {key.key: key.targets for key in found.keys} == {
        "lycoris_fc.lora_up.weight": ("fc.weight",),
        "lycoris_fc.lora_down.weight": ("fc.weight",),
        "lycoris_block_out_prj.lora_up.weight": (),
        "lycoris_block_conv.lora_up.weight": (),
        "lycoris_fc.diff_b": ("fc.bias",),
        "what.is.this": (),
    }
    why = {key.key: key.why for key in found.keys}
    assert "nearest to lycoris_block_out_prj: block.out_proj.weight" in str(why["lycoris_block_out_prj.lora_up.weight"])
    assert "does not fit block.conv.weight (10, 6, 3, 3)" in str(why["lycoris_block_conv.lora_up.weight"])
    assert why["what.is.this"] == "no format reads it"
    assert {weight.name: weight.adapters for weight in found.weights} == {
        "fc.weight": ("lycoris_fc",),
        "fc.bias": ("lycoris_fc",),
        "block.conv.weight": (),
        "block.out_proj.weight": (),
    }
    assert "2 of 4 weights adapted; 3 of 6 keys used" in str(found)


def test_rows_are_named() -> None:
    adapters = one(locon(12, 12), "lora_unet_double_blocks_0_img_attn_proj")
    found = lyc_fx.coverage(adapters, {"transformer_blocks.0.attn.to_out.0.weight": (12, 12)})
    assert not found.complete, "nothing tells that this is Flux"
    qkv = {"double_blocks.0.img_attn.qkv.weight": (36, 12)}
    [key] = lyc_fx.coverage(one(locon(12, 12), "transformer.transformer_blocks.0.attn.to_k"), qkv).keys
    assert key.targets == ("double_blocks.0.img_attn.qkv.weight[12:24]",)


def test_the_live_report_lists_weights_without_an_adapter_and_reasons() -> None:
    adapters = mixed().select("lycoris_fc", "lycoris_block_out_prj")
    report = lyc_fx.merge(made("net"), adapters, strict=False)
    assert report.untouched == ("block.conv.weight", "block.out_proj.weight")
    assert [(each.key, each.why) for each in report.refused] == [
        ("lycoris_block_out_prj.lora_up.weight", "no such weight in the model")
    ]


def test_the_command(tmp_path: Path) -> None:
    model, file = tmp_path / "model.safetensors", tmp_path / "a.safetensors"
    save_file(made("net").state_dict(), model)
    save_file(dict(Lycoris().write(one(locon(15, 6), "lycoris_fc")).tensors), file)
    done = CliRunner().invoke(app, ["coverage", str(model), str(file)])
    assert "1 of 3 weights adapted; 3 of 3 keys used" in done.output
    data = json.loads(CliRunner().invoke(app, ["coverage", str(model), str(file), "--json"]).output)
    assert data["complete"] is True
    assert [weight["name"] for weight in data["weights"] if weight["adapters"]] == ["fc.weight"]


def mixtral(folder: Path) -> tuple[nn.Module, AdapterSet, list[str]]:
    """A model that is saved in the folder, and an adapter with the names and forms of its class; its keys."""
    hf = pytest.importorskip("transformers")
    config = hf.MixtralConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                              num_key_value_heads=1, num_local_experts=3, vocab_size=50)  # fmt: skip
    torch.manual_seed(0)
    base = hf.MixtralForCausalLM(config).eval()
    base.save_pretrained(folder)
    start = "base_model.model.model.layers.0.mlp"
    tensors = {
        f"{start}.gate.lora_A.weight": torch.randn(2, 16),
        f"{start}.gate.lora_B.weight": torch.randn(3, 2),
        f"{start}.experts.lora_A.weight": torch.randn(2 * 3, 24),
        f"{start}.experts.lora_B.weight": torch.randn(16, 2 * 3),
        "base_model.model.score.weight": torch.randn(4, 16),
    }
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "task_type": "SEQ_CLS"}
    settings["target_parameters"] = ["mlp.experts.down_proj"]
    adapters = lyc_fx.load(tensors, config=settings)
    return base, adapters, list(tensors)


def test_coverage_knows_what_a_fold_knows(tmp_path: Path) -> None:
    """Names in memory of transformers, experts in another form, new heads: complete wherever a fold succeeds."""
    base, adapters, keys = mixtral(tmp_path / "base")
    start = "base_model.model.model.layers.0.mlp"
    lyc_fx.fold_checkpoint(tmp_path / "base", adapters, tmp_path / "out")
    found = lyc_fx.coverage(adapters, tmp_path / "base")
    assert found.complete, str(found)
    targets = {key.key: key.targets for key in found.keys}
    stored = {name for name in shapes_of(tmp_path / "base")}
    assert len(targets) == len(keys) == len(found.keys)
    expert = targets[f"{start}.experts.lora_A.weight"]
    assert len(expert) == 3 and set(expert) <= stored
    assert set(targets[f"{start}.gate.lora_A.weight"]) <= stored
    assert targets["base_model.model.score.weight"] == ("score.weight",)
    assert lyc_fx.coverage(adapters.exclude("*score"), base).complete


def test_convert_knows_what_a_fold_knows(tmp_path: Path) -> None:
    _, adapters, _ = mixtral(tmp_path / "base")
    factors = adapters.exclude("*score")
    made = lyc_fx.convert(factors, "peft", like=tmp_path / "base")
    stored = shapes_of(tmp_path / "base")
    assert {f"{each.module}.weight" for each in made.modules} <= set(stored)
    assert sum(".experts." in each.module for each in made.modules) == 3
    made.save(tmp_path / "peft")
    lyc_fx.fold_checkpoint(tmp_path / "base", factors, tmp_path / "one")
    lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "peft", tmp_path / "other")
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "other"))
    before = load_file(tmp_path / "base" / "model.safetensors")
    assert one.keys() == other.keys() == before.keys()
    assert sum(not torch.equal(one[name], before[name]) for name in one) == 4
    for name in one:
        torch.testing.assert_close(one[name], other[name])
