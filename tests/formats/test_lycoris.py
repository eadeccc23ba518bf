"""LyCORIS and kohya files: read → write → read, and key conventions."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from layouts import keys
from nets import VARIANTS, one, random_for, variant_id
from safetensors.torch import save_file

import lyc_fx
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.formats.format import Format
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.formats.nhwc import Nhwc


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_round_trip(variant, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    shapes = ((15, 6, 3, 2), (20, 6), (9,), (4, 6, 3))
    adapter = next(a for s in shapes if (a := random_for(variant, s, dtype=torch.bfloat16)) is not None)
    path = tmp_path / "a.safetensors"
    save_file(Lycoris().write(one(adapter)).tensors, path, {"ss_network_module": "lycoris.kohya"})
    read = lyc_fx.load(path)
    again = Lycoris().write(read).tensors
    [entry] = read.entries
    assert entry.adapter.structure() == adapter.structure()
    assert read.metadata == {"ss_network_module": "lycoris.kohya"} and read.source == str(path)
    assert set(entry.keys) == set(again)
    for key, tensor in Lycoris().write(one(adapter)).tensors.items():
        assert again[key].dtype == tensor.dtype and torch.equal(again[key], tensor)
    assert read.digest == one(adapter).digest


@pytest.mark.parametrize(
    "module", ["lycoris_fc", "lora_unet_fc", "lora_te_fc", "lora_te1_fc", "lora_te2_fc", "lora_te3_fc", "fc"]
)
def test_prefixes_and_dotted_paths(module: str) -> None:
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 5), "fc_more": torch.nn.Linear(3, 5)})
    report = lyc_fx.merge(model, lyc_fx.load(keys(module)))
    assert [row.target for row in report.applied] == ["fc.weight"]
    assert report.applied[0].scale == 1.5


def test_a_dotted_path_is_meant_literally_where_flat_names_collide() -> None:
    model = torch.nn.Module()
    model.a_b = torch.nn.Module()
    model.a_b.c = torch.nn.Linear(3, 5)
    model.a = torch.nn.Module()
    model.a.b_c = torch.nn.Linear(3, 5)
    with pytest.raises(BadAdapter, match=r"ambiguous: it may mean a\.b_c\.weight or a_b\.c\.weight"):
        lyc_fx.merge(model, lyc_fx.load(keys("lycoris_a_b_c")))
    report = lyc_fx.merge(model, lyc_fx.load(keys("a_b.c")))
    assert [row.target for row in report.applied] == ["a_b.c.weight"]


def test_a_bare_parameter_is_named_by_itself() -> None:
    model = torch.nn.Module()
    model.raw = torch.nn.Parameter(torch.zeros(5, 3))
    lyc_fx.merge(model, lyc_fx.load(keys("lycoris_raw")))
    assert model.raw.abs().sum() > 0


def test_alpha_rules() -> None:
    without = {k: v for k, v in keys().items() if not k.endswith("alpha")}
    assert lyc_fx.load(without).entries[0].adapter.scale == 1
    one_element = keys() | {"lycoris_fc.alpha": torch.tensor([3.0], dtype=torch.bfloat16)}
    assert lyc_fx.load(one_element).entries[0].adapter.scale == 1.5
    with pytest.warns(UserWarning, match="alpha is 0"):
        assert lyc_fx.load(keys() | {"lycoris_fc.alpha": torch.tensor(0.0)}).entries[0].adapter.scale == 1


def test_alpha_is_ignored_where_both_kronecker_factors_are_full() -> None:
    tensors = {"x.lokr_w1": torch.randn(1, 3), "x.lokr_w2": torch.randn(5, 1), "x.alpha": torch.tensor(float("inf"))}
    adapter = lyc_fx.load(tensors).entries[0].adapter
    assert adapter.scale == 1 and adapter.rank is None


def test_a_file_that_mixes_algorithms_biases_and_a_residual() -> None:
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"fc": torch.nn.Linear(3, 5), "norm": torch.nn.LayerNorm(5), "out": torch.nn.Linear(5, 4)}
    )
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    residual = torch.zeros(5, 3)
    residual[1, 2], residual[4, 0] = 0.5, -2.0
    sparse = residual.to_sparse()
    tensors = keys() | {
        "lycoris_fc.diff_b": torch.randn(5),
        "lycoris_fc.bias_indices": sparse.indices().to(torch.int16),
        "lycoris_fc.bias_values": sparse.values(),
        "lycoris_fc.bias_size": torch.tensor([5, 3], dtype=torch.int16),
        "lycoris_norm.w_norm": torch.randn(5),
        "lycoris_norm.b_norm": torch.randn(5),
        "lycoris_out.weight": torch.randn(5),
        "lycoris_out.on_input": torch.tensor(1),
    }
    adapters = lyc_fx.load(tensors)
    assert sorted(key for entry in adapters.entries for key in entry.keys) == sorted(tensors)
    report = lyc_fx.merge(model, adapters, 0.7)
    assert [(row.target, row.algorithm) for row in report.applied] == [
        ("fc.weight", "locon"),
        ("fc.bias", "full"),
        ("fc.weight", "full"),
        ("norm.weight", "norm"),
        ("norm.bias", "norm"),
        ("out.weight", "ia3"),
    ]
    up, down = tensors["lycoris_fc.lora_up.weight"], tensors["lycoris_fc.lora_down.weight"]
    wanted = {
        "fc.weight": base["fc.weight"] + 0.7 * (1.5 * up @ down + residual),
        "fc.bias": base["fc.bias"] + 0.7 * tensors["lycoris_fc.diff_b"],
        "norm.weight": base["norm.weight"] + 0.7 * tensors["lycoris_norm.w_norm"],
        "norm.bias": base["norm.bias"] + 0.7 * tensors["lycoris_norm.b_norm"],
        "out.weight": base["out.weight"] * (1 + 0.7 * tensors["lycoris_out.weight"]),
        "out.bias": base["out.bias"],
    }
    for name, tensor in wanted.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-5, atol=1e-6)


def test_blocks_of_three_dimensions_are_oft_and_of_four_boft() -> None:
    for blocks, name in ((torch.randn(2, 3, 3), "diag-oft"), (torch.randn(2, 2, 4, 4), "boft")):
        [entry] = lyc_fx.load({"x.oft_blocks": blocks, "x.alpha": torch.tensor(0.0)}).entries
        assert entry.adapter.name == name and entry.adapter.scale == 1


def test_glora_of_the_old_orientation_is_told_by_its_shapes() -> None:
    torch.manual_seed(0)
    a1, a2, b1, b2 = torch.randn(3, 2), torch.randn(2, 3), torch.randn(5, 2), torch.randn(2, 3)
    new = {"x.a1.weight": a1, "x.a2.weight": a2, "x.b1.weight": b1, "x.b2.weight": b2, "x.alpha": torch.tensor(3.0)}
    old = new | {"x.a1.weight": a2, "x.a2.weight": a1, "x.b1.weight": b2, "x.b2.weight": b1}
    weights = []
    for tensors in (new, old):
        model = torch.nn.ModuleDict({"x": torch.nn.Linear(3, 5)})
        torch.nn.init.ones_(model["x"].weight)
        report = lyc_fx.merge(model, lyc_fx.load(tensors))
        assert report.applied[0].scale == 1.5
        weights.append(model["x"].weight.detach())
    assert torch.equal(*weights)
    torch.testing.assert_close(weights[0], 1 + 1.5 * (torch.ones(5, 3) @ a1 @ a2 + b1 @ b2))


@pytest.mark.parametrize("format_", [Lycoris(), Nhwc()], ids=["lycoris", "nhwc"])
def test_a_residual_beside_factors_is_written_and_read_again(format_: Format) -> None:
    residual = torch.zeros(5, 3)
    residual[1, 2], residual[4, 0] = 0.5, -2.0
    sparse = residual.to_sparse()
    tensors = {k: v.bfloat16() for k, v in keys("x").items()} | {
        "x.diff_b": torch.ones(5, dtype=torch.bfloat16),
        "x.bias_indices": sparse.indices(),
        "x.bias_values": sparse.values().bfloat16(),
        "x.bias_size": torch.tensor([5, 3]),
    }
    adapters = lyc_fx.load(tensors)
    again = lyc_fx.load(dict(format_.write(adapters).tensors))
    assert len(again) == 3 and again.digest == adapters.digest
    twice = replace(adapters, entries=(adapters.entries[0], adapters.entries[0]))
    with pytest.raises(Unsupported, match="x: two adapters of one weight"):
        format_.write(twice)


@pytest.mark.parametrize("old", [False, True])
def test_glora_of_a_rank_above_the_weight_s_size_is_told_by_the_weight(old: bool) -> None:
    """Square, so that the factors alone do not tell the rank from the size."""
    torch.manual_seed(0)
    a, a_, b, b_ = (torch.randn(s, dtype=torch.float64) for s in ((3, 5), (5, 3), (3, 5), (5, 3)))
    names = ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2")
    model = torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 3).double()})
    weight = model.fc.weight.detach().clone()
    keys = {f"lycoris_fc.{name}.weight": factor for name, factor in zip(names, (a, a_, b, b_), strict=True)}
    lyc_fx.merge(model, lyc_fx.load(keys | {"lycoris_fc.alpha": torch.tensor(2.0)}), 0.7)
    torch.testing.assert_close(model.fc.weight.detach(), weight + 0.7 * 2 / 5 * (weight @ a @ a_ + b @ b_))
