"""Against PEFT's forward: `target_parameters`, factors of three-dimensional parameters."""

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


def test_experts_in_a_wrong_order_or_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    model = made(Moe)
    train(model, "LoraConfig", tmp_path, target_parameters=BOTH, **MOE)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    with pytest.raises(BadAdapter, match=r"the factors give \(3, 10, 6\) or \(3, 6, 10\), the weight is \(3, 6, 5\)"):
        lyc_fx.merge(model, lyc_fx.load(tensors, config=config | {"target_parameters": BOTH[::-1]}))
    key = "base_model.model.experts.lora_{}.weight"
    alike = {key.format("A"): torch.randn(6, 10), key.format("B"): torch.randn(6, 6)}
    with pytest.raises(BadAdapter, match="which of the target_parameters gate_up_proj, down_proj is which"):
        lyc_fx.load(tensors | alike, config=config)
    one_missing = {k: v for k, v in tensors.items() if "base_layer" not in k}
    assert targets(lyc_fx.merge(made(Moe), lyc_fx.load(one_missing, config=config))) == [
        "experts.down_proj",
        "fc.weight",
    ]
