"""Fused projections beside their members, and those that are interleaved."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter

diffusers = pytest.importorskip("diffusers")
STRENGTH = 0.7
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
CROSS = "down_blocks.0.attentions.0.transformer_blocks.0.attn2"


def unet() -> nn.Module:
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1,
        cross_attention_dim=6, attention_head_dim=4, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).double().eval()  # fmt: skip


def call() -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return dict(
        sample=torch.randn(2, 4, 8, 8, generator=rng, dtype=torch.float64), timestep=torch.tensor(3),
        encoder_hidden_states=torch.randn(2, 3, 6, generator=rng, dtype=torch.float64), return_dict=False,
    )  # fmt: skip


def fused_unet() -> nn.Module:
    model = unet()
    model.fuse_qkv_projections()
    return model


@cache
def captured() -> GraphModule:
    """Of a model of its own: passes leave it as it is, and one will do for all sets."""
    return lyc_fx.capture(fused_unet(), (), call())


def factors(**shapes: tuple[int, int]) -> dict[str, Tensor]:
    made = {}
    for position, (name, (out, inner)) in enumerate(shapes.items()):
        rng = torch.Generator().manual_seed(position)
        made[f"{name}.lora_up.weight"] = torch.randn(out, 2, generator=rng, dtype=torch.float64)
        made[f"{name}.lora_down.weight"] = torch.randn(2, inner, generator=rng, dtype=torch.float64)
        made[f"{name}.alpha"] = torch.tensor(3.0)
    return made


def output(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(**call())[0]


SETS = {
    "a member": {f"{ATTENTION}.to_q": (8, 8)},
    "all members": {f"{ATTENTION}.to_{n}": (8, 8) for n in "qkv"},
    "of keys and values": {f"{CROSS}.to_k": (8, 6)},
    "fused": {f"{ATTENTION}.to_qkv": (24, 8)},
}


@pytest.mark.parametrize("kind", SETS)
def test_both_are_changed_on_every_road(kind: str) -> None:
    adapters = lyc_fx.load(factors(**SETS[kind]))
    plain = unet()
    if kind == "fused":
        split = {f"{ATTENTION}.to_{n}": (i * 8, i * 8 + 8) for i, n in enumerate("qkv")}
        factor = {k.rpartition(".to_qkv.")[2]: v for k, v in factors(**SETS[kind]).items()}
        with torch.no_grad():
            for name, rows in split.items():
                change = factor["lora_up.weight"][slice(*rows)] @ factor["lora_down.weight"]
                plain.get_submodule(name).weight += STRENGTH * 1.5 * change
    else:
        lyc_fx.merge(plain, adapters, STRENGTH)
    wanted, base = output(plain), output(unet())
    fused = fused_unet()
    before = copy.deepcopy(fused.state_dict())
    adapted = lyc_fx.splice(captured(), adapters, STRENGTH)
    folded = lyc_fx.fold(adapted, check=True)
    for program in (adapted, lyc_fx.lower(adapted, check=True), folded):
        torch.testing.assert_close(program(**call())[0], wanted, rtol=1e-10, atol=1e-10)
    live = lyc_fx.live(fused)
    live.set({adapters: STRENGTH})
    torch.testing.assert_close(output(fused), wanted, rtol=1e-10, atol=1e-10)
    assert (wanted - base).abs().max() > 1e-3
    fused.unfuse_qkv_projections()
    torch.testing.assert_close(output(fused), wanted, rtol=1e-10, atol=1e-10)
    live.restore()
    assert all(torch.equal(tensor, before[name]) for name, tensor in fused.state_dict().items())


class Apart(nn.Module):
    """Two layers that are only called so."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.to_kv, self.to_k, self.to_v = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.to_kv(x) + torch.cat([self.to_k(x), self.to_v(x)], -1)


def test_weights_of_other_values_are_left_alone() -> None:
    model = nn.ModuleDict({"attn": Apart()})
    before = copy.deepcopy(model.state_dict())
    report = lyc_fx.merge(model, lyc_fx.load(factors(**{"attn.to_k": (8, 6)})), STRENGTH)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed == ["attn.to_k.weight"] == [row.target for row in report.applied]


def test_a_program_that_reads_no_adapted_weight_is_an_error() -> None:
    model = Apart()
    model.forward = lambda x: model.to_kv(x)  # type: ignore[method-assign]
    adapters = lyc_fx.load(factors(to_k=(8, 6), to_v=(8, 6)))
    program = lyc_fx.capture(nn.Sequential(nn.Linear(6, 6).double()), (torch.randn(2, 6).double(),))
    program.add_module("to_k", nn.Linear(6, 8).double())
    program.add_module("to_v", nn.Linear(6, 8).double())
    with pytest.raises(BadAdapter, match=r"does not read 2 of the 2 adapted weights.*to_k\.weight, to_v\.weight"):
        lyc_fx.splice(program, adapters, STRENGTH)
    with pytest.warns(NothingChanged, match="reads none of the adapted weights"):
        report = lyc_fx.report(lyc_fx.splice(program, adapters, STRENGTH, strict=False))
    assert len(report.notes) == 2 and "is not read by the captured graph" in report.notes[0]


def test_interleaved_rows_are_never_taken_for_thirds() -> None:
    sizes = dict(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
                 bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**sizes)).double()
    owner = "gpt_neox.layers.0.attention"
    before = copy.deepcopy(model.state_dict())
    for names in ((f"{owner}.query",), (f"{owner}.query", f"{owner}.key", f"{owner}.value")):
        with pytest.raises(BadAdapter, match="whose rows are interleaved by heads"):
            lyc_fx.merge(model, lyc_fx.load(factors(**dict.fromkeys(names, (16, 16)))), STRENGTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    lyc_fx.merge(model, lyc_fx.load(factors(**{f"{owner}.query_key_value": (48, 16)})), STRENGTH)


def grouped() -> nn.Module:
    """Phi-3 with four heads of queries and two of keys and values, and a head's width that is not the model's."""
    torch.manual_seed(0)
    sizes = dict(vocab_size=50, hidden_size=14, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=6, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return hf.Phi3ForCausalLM(hf.Phi3Config(**sizes)).double().eval()


def test_grouped_queries_have_more_rows_than_keys(tmp_path: Path) -> None:
    owner = "model.layers.0.self_attn"
    rows = {"q_proj": (0, 24), "k_proj": (24, 36), "v_proj": (36, 48)}
    stored = factors(**{f"{owner}.{name}": (last - first, 14) for name, (first, last) in rows.items()})
    model, name = grouped(), f"{owner}.qkv_proj.weight"
    wanted = model.state_dict()[name].clone()
    for part, at in rows.items():
        up, down = (stored[f"{owner}.{part}.lora_{side}.weight"] for side in ("up", "down"))
        wanted[slice(*at)] += STRENGTH * 1.5 * up @ down
    save_file({k: t.contiguous() for k, t in model.state_dict().items()}, tmp_path / "base.safetensors")
    adapters = lyc_fx.load(stored)
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors", STRENGTH)
    program = lyc_fx.capture(model, (), {"input_ids": torch.tensor([[1, 4, 2]]), "use_cache": False})
    folded = lyc_fx.fold(lyc_fx.splice(program, adapters, STRENGTH), check=True)
    lyc_fx.merge(model, adapters, STRENGTH)
    for found in (load_file(tmp_path / "out.safetensors"), folded.state_dict(), model.state_dict()):
        torch.testing.assert_close(found[name], wanted, rtol=1e-12, atol=1e-12)
        assert torch.equal(found[name], model.state_dict()[name])


def test_parts_that_are_not_those_of_attention_are_refused() -> None:
    model = nn.ModuleDict({"attn": nn.ModuleDict({"qkv_proj": nn.Linear(6, 20), "o_proj": nn.Linear(20, 6)})})
    before = copy.deepcopy(model.state_dict())
    for out in (20, 10, 5):
        with pytest.raises(BadAdapter):
            lyc_fx.merge(model, lyc_fx.load(factors(**{"attn.q_proj": (out, 6)})), STRENGTH)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
