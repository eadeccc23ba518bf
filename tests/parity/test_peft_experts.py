"""Against PEFT's forward: `target_parameters`, factors of three-dimensional parameters."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import lyc_fx
from lyc_fx.errors import BadAdapter

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft_models import Moe, check, made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


MOE = {"r": 2, "lora_alpha": 3, "target_modules": ["fc"]}
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


@pytest.mark.parametrize("listed", [BOTH, BOTH[:1], BOTH[1:]])
def test_parameters_of_experts(listed: list[str], tmp_path: Path) -> None:
    model = made(Moe)
    patterns = {"alpha_pattern": {"experts.down_proj": 5}, "rank_pattern": {"experts.down_proj": 3}}
    adapted = train(model, "LoraConfig", tmp_path, target_parameters=listed, **MOE, **patterns)
    report = check(model, adapted, tmp_path)
    assert targets(report) == sorted(["fc.weight", *listed])
    assert {row.target: row.rank for row in report.applied}.get("experts.down_proj", 3) == 3


def test_parameters_of_experts_that_store_in_before_out(tmp_path: Path) -> None:
    """`is_transposed` of the module decides in PEFT, the shape here."""
    model = made(Moe)
    torch.manual_seed(2)
    a, b = torch.randn(6, 6), torch.randn(10, 6)
    tensors = {"base_model.model.experts.lora_A.weight": a, "base_model.model.experts.lora_B.weight": b}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_parameters": BOTH[:1]}
    before = model.experts.gate_up_proj.detach().clone()
    change = 1.5 * torch.einsum("ore,eri->eoi", b.reshape(10, 2, 3), a.reshape(3, 2, 6))
    for turned in (False, True):
        base = before.mT.contiguous() if turned else before
        model.experts.gate_up_proj = nn.Parameter(base.clone())
        lyc_fx.merge(model, lyc_fx.load(tensors, config=config))
        torch.testing.assert_close(model.experts.gate_up_proj, base + (change.mT if turned else change))


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("ranks", [{}, {"rank_pattern": {r".*\.gate_up_proj": 4}}])
def test_the_order_of_the_list_and_owners_mean_nothing(
    owned: bool, ranks: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    """PEFT itself writes a set, whose order is that of the hash seed, and names without owners."""
    model = made(Moe)
    theirs = train(model, "LoraConfig", tmp_path, target_parameters=BOTH, **MOE, **ranks)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = theirs.merge_and_unload().state_dict()
    names = BOTH if owned else [each.rpartition(".")[2] for each in BOTH]
    for listed in (names, names[::-1], [*names, "router.weight"], ["router.weight", *names[::-1]]):
        live = copy.deepcopy(model)
        report = lyc_fx.merge(live, lyc_fx.load(tensors, config=config | {"target_parameters": listed}))
        assert targets(report) == sorted(["fc.weight", *BOTH])
        for name, value in live.state_dict().items():
            torch.testing.assert_close(value, wanted[name], rtol=1e-5, atol=1e-5)


def test_a_name_without_owner_is_not_that_of_a_module_that_is_named_itself() -> None:
    """Nor of a dense layer that has the parameter's name as its own."""
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"down_proj": nn.Linear(6, 5)})})
    before = model["mlp"]["down_proj"].weight.detach().clone()
    up, down = torch.randn(5, 2), torch.randn(2, 6)
    tensors = {f"base_model.model.mlp.down_proj.lora_{side}.weight": t for side, t in (("A", down), ("B", up))}
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["down_proj"]}
    for listed in (["gate_up_proj", "down_proj"], ["down_proj"]):
        live = copy.deepcopy(model)
        lyc_fx.merge(live, lyc_fx.load(tensors, config=config | {"target_parameters": listed}))
        torch.testing.assert_close(live["mlp"]["down_proj"].weight, before + 1.5 * up @ down)


def test_experts_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    model = made(Moe)
    train(model, "LoraConfig", tmp_path, target_parameters=BOTH, **MOE)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    key = "base_model.model.experts.lora_{}.weight"
    alike = {key.format("A"): torch.randn(6, 10), key.format("B"): torch.randn(6, 6)}
    with pytest.raises(BadAdapter, match="which of the target_parameters gate_up_proj, down_proj is which"):
        lyc_fx.load(tensors | alike, config=config)
    one_missing = {k: v for k, v in tensors.items() if "base_layer" not in k}
    assert targets(lyc_fx.merge(made(Moe), lyc_fx.load(one_missing, config=config))) == [
        "experts.down_proj",
        "fc.weight",
    ]
