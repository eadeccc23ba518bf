"""Adapters for fused weights on models that have them apart, and the reverse: on every road, for every family."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from nets import VARIANTS, Conv1D, Variant, certain, pairs, random_for, variant_id
from oracle import adapted
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import BadAdapter

STRENGTH = 0.7
NAMES = ("q_proj", "k_proj", "v_proj")
NEVER = {"tlora", "boft", "norm", "gain", "experts"}
"""Families whose rows depend on each other in every layout, or that are for weights of one or three dimensions"""


class Apart(nn.Module):
    """Three projections, 6 → 5 each."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({name: nn.Linear(6, 5) for name in NAMES})

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.attn[name](x) for name in NAMES], -1)


class Fused(nn.Module):
    """The same as one projection, 6 → 15; with `Conv1D` stored (in, out)."""

    def __init__(self, apart: Apart, transposed: bool = False) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv_proj": Conv1D(15, 6) if transposed else nn.Linear(6, 15)})
        weight = torch.cat([apart.attn[name].weight for name in NAMES]).detach()
        layer = self.attn["qkv_proj"]
        layer.weight = nn.Parameter(weight.t().contiguous() if transposed else weight)
        layer.bias = nn.Parameter(torch.cat([apart.attn[name].bias for name in NAMES]).detach())

    def forward(self, x: Tensor) -> Tensor:
        return self.attn["qkv_proj"](x)


def apart() -> Apart:
    torch.manual_seed(3)
    return Apart().double().eval()


def fused(transposed: bool = False) -> Fused:
    return Fused(apart(), transposed)


@cache
def captured(build: Callable[..., nn.Module], *options: bool) -> tuple[nn.Module, GraphModule]:
    """A model and its program. Nothing changes them, so that one capture will do for all adapters."""
    model = build(*options)
    return model, lyc_fx.capture(model, (rows(),))


def rows() -> Tensor:
    return torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def every_road(adapters: AdapterSet, folder: Path, build: Callable[..., nn.Module], *options: bool) -> nn.Module:
    """The live model, merged, after the other roads have given the same bits."""
    x, (model, program) = rows(), captured(build, *options)
    before = copy.deepcopy(model.state_dict())
    live = copy.deepcopy(model)
    report = lyc_fx.merge(live, adapters, STRENGTH)
    spliced = lyc_fx.splice(program, adapters, STRENGTH)
    folded = lyc_fx.fold(spliced, check=True)
    assert lyc_fx.report(spliced).applied == report.applied
    assert [step.fired for step in lyc_fx.history(folded)] == [len({row.target for row in report.applied})] * 2
    lowered = lyc_fx.lower(spliced, check=True)
    save_file(model.state_dict(), folder / "base.safetensors")
    turned = ["*.weight"] if any(isinstance(m, Conv1D) for m in model.modules()) else []
    lyc_fx.fold_checkpoint(
        folder / "base.safetensors", adapters, folder / "out.safetensors", STRENGTH, transposed=turned
    )
    for name, value in load_file(folder / "out.safetensors").items():
        assert torch.equal(value, live.state_dict()[name]), name
        torch.testing.assert_close(folded.state_dict()[name], value, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(spliced(x), live(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(lowered(x), live(x), rtol=1e-5, atol=1e-5)  # narrow: float32
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return live


def entry(module: str, adapter: Adapter, leaf: str = "weight") -> Entry:
    return Entry(module, leaf, adapter, (f"{module}.factors.{leaf}",))


def splits(adapter: Adapter) -> bool:
    try:
        return bool(adapter.rows(5, 10, (15, 6)))
    except BadAdapter:
        return False


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_rows_alone_are_the_rows_of_the_whole(variant: Variant) -> None:
    tried = 0
    for shape, rank in (((15, 6), 2), ((15, 6, 3, 2), 2), ((12, 6), 3)):  # an even rank has one magnitude per output
        adapter = random_for(
            variant, shape, rank=rank, alpha=0.0 if variant[0].alpha_bounds else 2.0, dtype=torch.float64
        )
        weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        for start, stop in ((0, 5), (5, 10), (10, 15), (2, 4), (3, 12), (0, 3)):
            if adapter is None or stop > shape[0]:
                continue
            try:
                part = adapter.rows(start, stop, shape)
            except BadAdapter as error:
                assert "apart" in str(error)
                continue
            part.fit((stop - start, *shape[1:]))
            wanted = adapted(adapter, weight, STRENGTH)[start:stop]
            torch.testing.assert_close(part.apply(weight[start:stop], STRENGTH), wanted, rtol=1e-12, atol=1e-12)
            tried += 1
    assert bool(tried) != (variant[0].name in NEVER)


MATRICES = [variant for variant, _ in pairs([(5, 6)], rank=2)]


@pytest.mark.parametrize("variant", MATRICES, ids=variant_id)
def test_an_adapter_for_a_fused_weight_on_separate_ones(variant: Variant, tmp_path: Path) -> None:
    adapter = certain(variant, (15, 6), alpha=0.0 if variant[0].alpha_bounds else 2.0)
    adapters = AdapterSet((entry("lycoris_attn_qkv_proj", adapter),), "test.safetensors")
    model = apart()
    wholes = {transposed: every_road(adapters, tmp_path, fused, transposed) for transposed in (False, True)}
    if not splits(adapter):
        with pytest.raises(BadAdapter, match=r"lycoris_attn_qkv_proj: .* apart"):
            lyc_fx.merge(model, adapters, STRENGTH)
        return
    parts = every_road(adapters, tmp_path, apart)
    together = torch.cat([parts.attn[name].weight for name in NAMES])
    for transposed, whole in wholes.items():
        merged = whole.attn["qkv_proj"].weight
        torch.testing.assert_close(together, merged.t() if transposed else merged, rtol=1e-13, atol=1e-13)
    assert not torch.equal(together, torch.cat([model.attn[name].weight for name in NAMES]))


@pytest.mark.parametrize("variant", MATRICES, ids=variant_id)
def test_adapters_for_separate_weights_on_a_fused_one(variant: Variant, tmp_path: Path) -> None:
    made = [certain(variant, (5, 6), rank=2, seed=seed) for seed in range(2)]
    entries = [entry(f"attn.{name}", a) for name, a in zip(("q_proj", "v_proj"), made, strict=True)]
    entries.append(entry("attn.k_proj", Full(diff=torch.randn(5)), "bias"))
    adapters = AdapterSet(tuple(entries), "test.safetensors")
    model = apart()
    parts = every_road(adapters, tmp_path, apart)
    wanted = torch.cat([parts.attn[name].weight for name in NAMES])
    for transposed in (False, True):
        whole = every_road(adapters, tmp_path, fused, transposed).attn["qkv_proj"]
        weight = whole.weight.t() if transposed else whole.weight
        torch.testing.assert_close(weight, wanted, rtol=1e-13, atol=1e-13)
        assert torch.equal(weight[5:10], model.attn["k_proj"].weight), "rows without an adapter keep their bits"
        torch.testing.assert_close(whole.bias, torch.cat([parts.attn[name].bias for name in NAMES]))


def test_the_report_names_the_rows() -> None:
    model, a = fused(), random_for((LoCon, LoCon.layouts[0]), (5, 6))
    assert a is not None
    report = lyc_fx.merge(model, AdapterSet((entry("attn.k_proj", a),)))
    assert [(row.target, row.rows) for row in report.applied] == [("attn.qkv_proj.weight", (5, 10))]
    assert "15×6 [5:10]" in str(report)


def test_a_block_sparse_adapter_is_recognized() -> None:
    """Three adapters of rank 2, saved as one of rank 6: each projection gets its own two columns back."""
    torch.manual_seed(0)
    up = torch.block_diag(*(torch.randn(5, 2) for _ in range(3)))
    sparse = LoCon(up=up, down=torch.randn(6, 6), alpha=3.0)
    report = lyc_fx.merge(apart(), AdapterSet((entry("attn.qkv_proj", sparse),)))
    assert [(row.rank, row.scale) for row in report.applied] == [(2, 0.5)] * 3
    dense = LoCon(up=up + 1e-3, down=sparse.down, alpha=3.0)
    assert [row.rank for row in lyc_fx.merge(apart(), AdapterSet((entry("attn.qkv_proj", dense),))).applied] == [6] * 3


def test_a_weight_that_does_not_split_evenly_is_left_alone() -> None:
    class Grouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.ModuleDict({"qkv_proj": nn.Linear(6, 5 + 2 + 2)})

    adapter = random_for((LoCon, LoCon.layouts[0]), (5, 6))
    assert adapter is not None
    with pytest.raises(BadAdapter, match=r"does not fit attn\.qkv_proj\.weight \(3, 6\)"):
        lyc_fx.merge(Grouped(), AdapterSet((entry("attn.q_proj", adapter),)))


def test_two_adapters_of_a_file_for_the_same_rows_are_refused() -> None:
    a, b = random_for((LoCon, LoCon.layouts[0]), (5, 6)), random_for((LoCon, LoCon.layouts[0]), (15, 6))
    assert a is not None and b is not None
    both = AdapterSet((entry("attn.qkv_proj", b), entry("attn.k_proj", a)), "test.safetensors")
    for model in (apart(), fused()):
        with pytest.raises(BadAdapter, match=r"attn\.k_proj: .* is named twice in this file, also by attn\.qkv_proj"):
            lyc_fx.merge(model, both)
