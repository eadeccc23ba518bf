"""Adapters trained in memory fold into the folder that is on disk, and those with a checkpoint's names merge into the
live class: names differ in transformers 5, and experts are fused."""

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import lyc_fx
from lyc_fx.errors import BadAdapter

peft = pytest.importorskip("peft")
pytest.importorskip("transformers", "5")
from transformers_zoo import MODELS, Model, trained  # noqa: E402  # it imports the latter

pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own warnings
STRENGTH = 0.7


@pytest.mark.parametrize("name", MODELS)
def test_trained_in_memory(name: str, tmp_path: Path) -> None:
    """The folder, and the live model, compute what PEFT computes."""
    case = MODELS[name]
    model = case.build()
    model.save_pretrained(tmp_path / "base")
    theirs = trained(model, tmp_path / "adapter", target_modules="all-linear")
    wanted, before = case.logits(theirs), case.logits(model)
    report = lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64, experts_implementation="eager").eval()
    torch.testing.assert_close(case.logits(folded), wanted, rtol=1e-9, atol=1e-9)
    assert (wanted - before).abs().max() > 1e-3 and not report.unused
    lyc_fx.merge(model, tmp_path / "adapter")
    torch.testing.assert_close(case.logits(model), wanted, rtol=1e-9, atol=1e-9)


def lora(shapes: dict[str, tuple[int, int]], rank: int = 2) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors, and the change of each module."""
    rng, tensors, changes = torch.Generator().manual_seed(2), dict[str, Tensor](), dict[str, Tensor]()
    for number, (module, (height, width)) in enumerate(shapes.items()):
        r = rank + number % 2
        up, down = (torch.randn(s, generator=rng, dtype=torch.float64) / 4 for s in ((height, r), (r, width)))
        tensors |= {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down}
        tensors[f"{module}.alpha"] = torch.tensor(3.0)
        changes[module] = STRENGTH * 3.0 / r * up @ down
    return tensors, changes


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_s_names(name: str, tmp_path: Path) -> None:
    """On the three roads; both names mean the same weight."""
    case = MODELS[name]
    model = case.build()
    old, own = case.old
    weight = model.get_submodule(own).weight.detach().clone()
    tensors, changes = lora({old: (weight.shape[0], weight.shape[1])})
    model.save_pretrained(tmp_path / "base")
    lyc_fx.fold_checkpoint(tmp_path / "base", tensors, tmp_path / "out", STRENGTH)
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, tensors, STRENGTH)
    for each in (live, folded):
        torch.testing.assert_close(each.get_submodule(own).weight, weight + changes[old], rtol=1e-12, atol=1e-12)
    if name in ("ViT", "Qwen2.5-VL"):
        inputs = {**case.inputs, **({"use_cache": False} if "input_ids" in case.inputs else {})}
        program = lyc_fx.capture(model, (), inputs)
        merged = lyc_fx.fold(lyc_fx.splice(program, tensors, STRENGTH), check=True)
        assert torch.equal(merged.get_parameter(f"{own}.weight"), live.get_submodule(own).weight)


EXPERTS = {
    "Qwen3-MoE": ("model.layers.0.mlp.experts.{}.{}", ("gate_proj", "up_proj", "down_proj"), 12),
    "Mixtral": ("model.layers.0.block_sparse_moe.experts.{}.{}", ("w1", "w3", "w2"), 24),
}


@pytest.mark.parametrize("only", [None, "down"])
@pytest.mark.parametrize("name", EXPERTS)
def test_experts_that_are_layers_on_disk_and_fused_in_memory(name: str, only: str | None, tmp_path: Path) -> None:
    case: Model = MODELS[name]
    stem, layers, inner = EXPERTS[name]
    gate, up, down = layers
    shapes = {}
    for expert in (0, 2):  # not of all experts
        if only is None:
            shapes |= {stem.format(expert, gate): (inner, 16), stem.format(expert, up): (inner, 16)}
        shapes[stem.format(expert, down)] = (16, inner)
    tensors, changes = lora(shapes)
    model = case.build()
    model.save_pretrained(tmp_path / "base")
    experts = model.model.layers[0].mlp.experts
    wanted = {key: value.detach().clone() for key, value in experts.named_parameters()}
    for module, change in changes.items():
        expert, layer = module.split(".")[-2:]
        if layer == down:
            wanted["down_proj"][int(expert)] += change
        else:
            first = 0 if layer == gate else inner
            wanted["gate_up_proj"][int(expert), first : first + inner] += change
    lyc_fx.fold_checkpoint(tmp_path / "base", tensors, tmp_path / "out", STRENGTH)
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64)
    report = lyc_fx.merge(model, tensors, STRENGTH)
    assert sorted(key for row in report.applied for key in row.keys) == sorted(tensors)
    for each in (model, folded):
        for key, value in each.model.layers[0].mlp.experts.named_parameters():
            torch.testing.assert_close(value, wanted[key], rtol=1e-12, atol=1e-12)


def test_what_belongs_to_no_expert_is_refused(tmp_path: Path) -> None:
    model = MODELS["Mixtral"].build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stem, _, inner = EXPERTS["Mixtral"]
    for module, shape in ((stem.format(3, "w1"), (inner, 16)), (stem.format(0, "w1"), (inner + 1, 16)),
                          (stem.format(0, "w4"), (inner, 16))):  # fmt: skip
        with pytest.raises(BadAdapter, match="no such weight in the model"):
            lyc_fx.merge(model, lora({module: shape})[0])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_an_adapter_of_fewer_experts_than_there_are_is_refused(tmp_path: Path) -> None:
    model = MODELS["Qwen3-MoE"].build()
    model.save_pretrained(tmp_path / "base")
    key = "base_model.model.model.layers.0.mlp.experts.lora_{}.weight"
    tensors = {key.format("A"): torch.randn(4, 12), key.format("B"): torch.randn(16, 4)}  # two of three
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_parameters": ["mlp.experts.down_proj"]}
    with pytest.raises(BadAdapter, match="no such weight in the model"):
        lyc_fx.fold_checkpoint(tmp_path / "base", lyc_fx.load(tensors, config=config), tmp_path / "out")
    assert not (tmp_path / "out").exists()
