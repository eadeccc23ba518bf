"""`convert`: the effect of every adapter survives, under the names and keys of every convention."""

import copy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from conversions import MODELS, adapters_for, made
from nets import VARIANTS, certain, one, pairs, random_for, variant_id
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.experts import Experts
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.glora import GLoRA
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.algorithms.replace import Replace
from lyc_fx.algorithms.vera import VeRA
from lyc_fx.conversion import Conversion, convert
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.naming import Target

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

STRENGTH = 0.7
TARGETS = [target.value for target in Target]


def merged(model: nn.Module, adapters: AdapterSet) -> dict[str, Tensor]:
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, STRENGTH)
    return live.state_dict()


@cache
def given(name: str) -> tuple[nn.Module, AdapterSet, dict[str, Tensor]]:
    """A model, adapters, and their effect: neither reading nor writing them changes any."""
    model = made(name)
    adapters = adapters_for(model)
    return model, adapters, merged(model, adapters)


def same_effect(model: nn.Module, adapters: AdapterSet, wanted: dict[str, Tensor], tolerance: float = 1e-6) -> None:
    """Changes of each weight agree to the relative tolerance, and every weight that was changed is changed."""
    base, given = model.state_dict(), merged(model, adapters)
    for name, value in wanted.items():
        change = (value - base[name]).norm()
        assert (given[name] - value).norm() <= tolerance * change, name


def again(conversion: Conversion, folder: Path) -> AdapterSet:
    """What was written, read again from the disk."""
    path = folder / ("peft" if conversion.contents.config is not None else "out.safetensors")
    conversion.save(path)
    return lyc_fx.load(path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("to", TARGETS)
def test_every_convention_keeps_the_effect(to: str, name: str, tmp_path: Path) -> None:
    model, adapters, wanted = given(name)
    assert len(adapters) >= 3
    read = again(convert(adapters, to, like=model), tmp_path)
    assert read.unread == ()
    same_effect(model, read, wanted, 5e-3 if to == "nhwc" else 1e-6)  # nhwc stores bfloat16


@pytest.mark.parametrize("back", TARGETS)
@pytest.mark.parametrize("to", TARGETS)
def test_there_and_back(to: str, back: str, tmp_path: Path) -> None:
    model, adapters, wanted = given("flux")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    there = again(convert(adapters, to, like=model), tmp_path / "a")
    read = again(convert(there, back, like=model), tmp_path / "b")
    same_effect(model, read, wanted, 5e-3 if "nhwc" in (to, back) else 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("to", [to for to in TARGETS if to != "nhwc"])
def test_factors_of_16_bits(to: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """As most files have them: also where a scale is multiplied in, or adapters are fused."""
    model, whole, _ = given("flux")
    entries = [replace(e, adapter=replace(e.adapter.to(dtype), alpha=1.3)) for e in whole.entries]
    adapters = AdapterSet(tuple(entries))
    same_effect(model, again(convert(adapters, to, like=model), tmp_path), merged(model, adapters))


def names_of(adapters: AdapterSet, to: str, model: nn.Module) -> set[str]:
    return {made.module for made in convert(adapters, to, like=model).modules}


def test_names_are_those_that_the_tools_have() -> None:
    model = made("flux")
    adapters = adapters_for(model)
    kohya = names_of(adapters, "kohya", model)
    assert {"lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_single_blocks_0_linear1"} <= kohya
    assert "lora_unet_final_layer_adaLN_modulation_1" in kohya
    [last] = [m for m in convert(adapters, "kohya", like=model).modules if m.module.endswith("adaLN_modulation_1")]
    assert last.adapter.rank == 2, "shift and scale change places; the rank does not grow"
    assert "diffusion_model.double_blocks.0.txt_mlp.0" in names_of(adapters, "comfyui", model)
    assert "transformer.single_transformer_blocks.0.proj_mlp" in names_of(adapters, "diffusers", model)
    sdxl, small = made("sdxl"), made("unet")
    assert "lora_unet_input_blocks_1_0_in_layers_2" in names_of(adapters_for(sdxl), "kohya", sdxl)
    assert "lora_unet_down_blocks_0_resnets_0_conv1" in names_of(adapters_for(small), "kohya", small)
    assert "unet.down_blocks.0.resnets.0.conv1" in names_of(adapters_for(small), "diffusers", small)
    assert "lora_unet_joint_blocks_0_x_block_attn_qkv" in names_of(adapters_for(made("sd3")), "kohya", made("sd3"))


_ADDITIVE = [v for v in VARIANTS if v[0] in (LoHa, LoKr, LoCon)]


@pytest.mark.parametrize(
    ("variant", "shape"), pairs([(15, 6), (10, 6, 3, 3), (6, 15, 1, 3)], _ADDITIVE, rank=1), ids=variant_id
)
@pytest.mark.parametrize("rank", [1, 2])
def test_exact_low_rank_forms(variant: tuple[type, frozenset[str]], shape: tuple[int, ...], rank: int) -> None:
    adapter = certain(variant, shape, rank=rank, dtype=torch.float64)
    weight = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    form = adapter.low_rank(shape)
    form.fit(shape)
    assert isinstance(form, LoCon) and form.mid is None
    wanted = adapter.apply(weight, STRENGTH)
    torch.testing.assert_close(form.apply(weight, STRENGTH), wanted, rtol=1e-12, atol=1e-12)
    assert (wanted - weight).norm() > 1e-3


def test_lokr_and_loha_become_lora_for_diffusers(tmp_path: Path) -> None:
    model = made("net")
    for family, rank in ((LoHa, 4), (LoKr, None)):
        adapters = adapters_for(model, (family, family.layouts[0]))
        conversion = convert(adapters, "diffusers", like=model)
        assert {each.how for each in conversion.modules} == {("low rank",)}
        assert rank is None or {each.adapter.rank for each in conversion.modules} == {rank}
        (tmp_path / family.name).mkdir()
        same_effect(model, again(conversion, tmp_path / family.name), merged(model, adapters))


def test_what_has_no_exact_form_is_refused_or_approximated_with_its_error(tmp_path: Path) -> None:
    model = made("net")
    torch.manual_seed(0)
    diff = torch.randn(15, 6)
    adapters = AdapterSet((Entry("fc", "weight", Full(diff=diff), ("fc.diff",)),))
    with pytest.raises(Unsupported, match=r"fc: full has no exact low-rank form\n--svd RANK"):
        convert(adapters, "diffusers", like=model)
    conversion = convert(adapters, "diffusers", like=model, svd=4)
    [made_] = conversion.modules
    s = torch.linalg.svdvals(diff.double())
    assert made_.error == pytest.approx(float(s[4:].norm() / s.norm()))
    written = again(conversion, tmp_path).entries[0].adapter
    assert isinstance(written, LoCon) and written.rank == 4
    error = (written.delta((15, 6)).double() - diff).norm() / diff.norm()
    assert error == pytest.approx(made_.error, rel=1e-5)
    assert convert(adapters, "diffusers", like=model, svd=6).modules[0].error == pytest.approx(0, abs=1e-12)


def test_an_effect_that_depends_on_the_weight_is_never_approximated() -> None:
    glora = next(v for v in VARIANTS if v[0].name == "glora")
    with pytest.raises(Unsupported, match="depends on the weight"):
        convert(adapters_for(made("net"), glora), "diffusers", like=made("net"), svd=2)


def test_without_a_model_dotted_names_are_the_model_s() -> None:
    adapter = random_for((LoCon, LoCon.layouts[0]), (15, 6))
    assert adapter is not None
    [dotted] = convert(one(adapter, "blocks.0.fc"), "lycoris").modules
    assert dotted.module == "lycoris_blocks_0_fc"
    [kept] = convert(one(adapter, "lora_unet_blocks_0_fc"), "kohya").modules
    assert kept.module == "lora_unet_blocks_0_fc"
    with pytest.raises(BadAdapter, match=r"lora_unet_blocks_0_fc: the model's own names .* --like"):
        convert(one(adapter, "lora_unet_blocks_0_fc"), "diffusers")


def test_factors_that_do_not_tell_the_weights_shape_need_the_model() -> None:
    """Experts may be stored turned, a replacement lies as the model's weight does, VeRA's A may be wider, and HRA's U
    does not know of outputs; GLoRA's factors tell it."""
    experts = certain((Experts, Experts.layouts[0]), (3, 5, 4))
    replacement = Replace(value=torch.ones(5, 3))
    wide = [certain((family, family.layouts[0]), (15, 6)) for family in (VeRA, HRA)]
    for adapter in (experts, replacement, *wide):
        assert adapter.weight_shape() is None
        with pytest.raises(BadAdapter, match=r"blocks\.fc\.weight: the model's own names .* --like"):
            convert(one(adapter, "blocks.fc"), "lycoris")
    glora = certain((GLoRA, GLoRA.layouts[0]), (10, 6, 3, 2))
    assert glora.weight_shape() == (10, 6, 3, 2)
    assert [each.module for each in convert(one(glora, "blocks.fc"), "lycoris").modules] == ["lycoris_blocks_fc"]


def test_separate_adapters_become_one_block_sparse_one_and_separate_again(tmp_path: Path) -> None:
    model = made("flux")
    adapters = adapters_for(model).select("*single_transformer_blocks*")
    fused = {each.module: each for each in convert(adapters, "kohya", like=model).modules}
    linear1 = fused["lora_unet_single_blocks_0_linear1"]
    assert (linear1.how, linear1.adapter.rank) == (("fused",), 8), "q, k, v and the MLP's input, of rank 2 each"
    back = convert(again(convert(adapters, "kohya", like=model), tmp_path), "diffusers", like=model)
    parts = [each for each in back.modules if each.module.endswith(("to_q", "to_k", "to_v", "proj_mlp"))]
    assert [each.adapter.rank for each in parts] == [2] * 4


def test_metadata_is_kept_and_two_names_for_one_module_are_refused() -> None:
    model = made("net")
    adapters = adapters_for(model)
    assert convert(adapters, "lycoris", like=model).contents.metadata["ss_network_dim"] == "2"
    twice = AdapterSet((*adapters.entries, Entry("fc", "weight", adapters.entries[0].adapter, ("fc",))))
    with pytest.raises(BadAdapter, match="named twice"):
        convert(twice, "lycoris", like=model)
