"""Against PEFT's forward or merge: IA3 on the output, OFT, BOFT, AdaLoRA, whole modules, biases."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import one
from torch import nn

import lyc_fx
from lyc_fx.errors import BadAdapter, BadFile, Unsupported

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft_models import Net, check, made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


METHODS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "ia3": (
        "IA3Config",
        {"target_modules": ["fc", "bare", "conv"], "feedforward_modules": []},
        ["bare.weight", "conv.bias", "conv.weight", "fc.bias", "fc.weight"],
    ),
    "ia3, some feedforward": (
        "IA3Config",
        {"target_modules": ["fc", "bare", "conv"], "feedforward_modules": ["fc", "conv"]},
        ["bare.weight", "conv.weight", "fc.weight"],
    ),
    "ia3, the end of a name is feedforward": (
        "IA3Config",
        {"target_modules": ["fc", "bare", "are"], "feedforward_modules": ["are"]},
        ["bare.weight", "fc.bias", "fc.weight"],
    ),
    "oft": ("OFTConfig", {"oft_block_size": 8, "target_modules": ["fc", "bare"]}, ["bare.weight", "fc.weight"]),
    **{
        f"oft, {terms} terms": (
            "OFTConfig",
            {"oft_block_size": 8, "target_modules": ["fc"], "num_cayley_neumann_terms": terms},
            ["fc.weight"],
        )
        for terms in (2, 3, 4, 6)
    },
    "oft, exact": (
        "OFTConfig",
        {"oft_block_size": 0, "r": 4, "target_modules": ["fc", "bare"], "use_cayley_neumann": False},
        ["bare.weight", "fc.weight"],
    ),
    "oft, shared": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ["fc", "bare"], "block_share": True},
        ["bare.weight", "fc.weight"],
    ),
    "oft, bound": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ["fc"], "coft": True, "eps": 0.5},
        ["fc.weight"],
    ),
    "oft, embedding": ("OFTConfig", {"oft_block_size": 8, "target_modules": ["emb"]}, ["emb.weight"]),
    "oft, pointwise": (
        "OFTConfig",
        {"oft_block_size": 8, "target_modules": ["point", "fc"]},
        ["fc.weight", "point.weight"],
    ),
    "dora, embedding": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 3, "use_dora": True, "target_modules": ["emb"]},
        ["emb.weight"],
    ),
    "boft": (
        "BOFTConfig",
        {"boft_block_size": 8, "target_modules": ["fc", "bare", "conv"]},
        ["bare.weight", "conv.weight", "fc.weight"],
    ),
    "adalora": (
        "AdaLoraConfig",
        {"init_r": 5, "target_r": 3, "total_step": 10, "lora_alpha": 7, "target_modules": ["fc", "bare"]},
        ["bare.weight", "fc.weight"],
    ),
    "whole modules": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 3, "target_modules": ["fc"], "modules_to_save": ["bare", "norm"]},
        ["bare.weight", "fc.weight", "norm.bias", "norm.weight"],
    ),
    "all biases": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 3, "target_modules": ["fc"], "bias": "all"},
        ["conv.bias", "fc.bias", "fc.weight", "norm.bias", "point.bias"],
    ),
    "the layer's bias": (
        "LoraConfig",
        {"r": 4, "lora_alpha": 3, "target_modules": ["fc"], "bias": "lora_only"},
        ["fc.bias", "fc.weight"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_methods(name: str, tmp_path: Path) -> None:
    config, settings, wanted = METHODS[name]
    model = made(Net)
    report = check(model, train(model, config, tmp_path, **settings), tmp_path)
    assert targets(report) == wanted


def test_oft_of_a_convolution_is_peft_s_merge(tmp_path: Path) -> None:
    """Its forward adds up overlapping patches, which no weight does."""
    model = made(Net)
    theirs = train(model, "OFTConfig", tmp_path, oft_block_size=6, target_modules=["conv"]).merge_and_unload()
    lyc_fx.merge(live := copy.deepcopy(model), lyc_fx.load(tmp_path))
    torch.testing.assert_close(live.conv.weight, theirs.conv.weight, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(live.conv.weight, model.conv.weight, atol=1e-2)


def test_the_permutations_of_several_stages_are_peft_s() -> None:
    """PEFT sets them up with its CUDA extension alone; the indices are computed without."""
    from peft.tuners.boft.layer import BOFTLayer

    from lyc_fx.algorithms.boft_input import InputBOFT

    stages, count, size = 3, 4, 6
    torch.manual_seed(0)
    blocks, w = torch.randn(stages, count, size, size).double(), torch.randn(5, 24).double()
    product = torch.eye(24).double()
    for stage in range(stages):
        order = BOFTLayer.block_butterfly_perm(None, 24, count // 2**stage, size // 2, stages - 1)
        skew = 0.5 * (blocks[stage] - blocks[stage].mT)
        identity = torch.eye(size).double()
        p = identity.new_zeros(24, 24)
        p[torch.arange(24), order] = 1
        product = p @ torch.block_diag(*((identity - skew) @ torch.linalg.inv(identity + skew))) @ p.t() @ product
    ours = InputBOFT(blocks=blocks, gain=torch.ones(5).double()).apply(w, 1.0)
    torch.testing.assert_close(ours, w @ product.t(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replacement_is_exact_at_strength_one(dtype: torch.dtype) -> None:
    """Also where the two are so far apart that V - W is not exact in float64."""
    from lyc_fx.algorithms.replace import Replace

    layer = nn.Linear(3, 5).to(dtype)
    nn.init.constant_(layer.weight, 3e30)
    value = (torch.randn(5, 3) * 1e-30).to(dtype)
    lyc_fx.merge(layer, one(Replace(value=value), "lycoris_"))
    assert torch.equal(layer.weight, value)


def test_methods_that_are_not_read_are_named(tmp_path: Path) -> None:
    model = made(Net)
    train(model, "FourierFTConfig", tmp_path, target_modules=["fc"], n_frequency=9)
    with pytest.raises(Unsupported, match=r"PEFT's method FOURIERFT; lyc-fx reads LORA.*merge_and_unload"):
        lyc_fx.load(tmp_path)
    tensors = {
        "base_model.model.fc.lora_A.weight": torch.randn(2, 3),
        "base_model.model.fc.lora_B.weight": torch.ones(5, 2),
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2}
    assert len(lyc_fx.load(tensors, config=config | {"init_lora_weights": "gaussian"})) == 1
    with pytest.raises(Unsupported, match="init_lora_weights is pissa_niter_4, which changes the base weights"):
        lyc_fx.load(tensors, config=config | {"init_lora_weights": "pissa_niter_4"})
    with pytest.raises(Unsupported, match="alora_invocation_tokens in adapter_config"):
        lyc_fx.load(tensors, config=config | {"alora_invocation_tokens": [1, 2]})


def test_trainable_tokens_are_refused(tmp_path: Path) -> None:
    train(made(Net), "LoraConfig", tmp_path, target_modules=["fc"], trainable_token_indices={"emb": [1, 2]})
    with pytest.raises(BadAdapter, match="emb: trainable tokens are not read"):
        lyc_fx.load(tmp_path)


def test_a_layer_without_bias_needs_none_and_a_missing_layer_is_said(tmp_path: Path) -> None:
    model = made(Net)
    train(model, "IA3Config", tmp_path, target_modules=["fc"], feedforward_modules=[])
    model.fc = nn.Linear(24, 40, bias=False)
    assert targets(lyc_fx.merge(model, lyc_fx.load(tmp_path))) == ["fc.weight"]
    del model.fc
    with pytest.raises(BadAdapter, match="fc: no such weight in the model"):
        lyc_fx.merge(model, lyc_fx.load(tmp_path))


def test_directories_without_safetensors(tmp_path: Path) -> None:
    model = made(Net)
    adapted = train(model, "LoraConfig", tmp_path / "one", target_modules=["fc"])
    adapted.add_adapter("second", peft.LoraConfig(target_modules=["bare"]))
    adapted.add_adapter("third", peft.LoraConfig(target_modules=["bare"]))
    adapted.save_pretrained(str(tmp_path / "several"), selected_adapters=["second", "third"])
    with pytest.raises(BadFile, match="one in each directory: name one of second, third"):
        lyc_fx.load(tmp_path / "several")
    assert len(lyc_fx.load(tmp_path / "several" / "third")) == 1
    adapted.save_pretrained(str(tmp_path / "old"), selected_adapters=["default"], safe_serialization=False)
    if not (tmp_path / "old" / "adapter_model.bin").is_file():
        (tmp_path / "old").mkdir(exist_ok=True)
        (tmp_path / "old" / "adapter_model.safetensors").unlink(missing_ok=True)
        torch.save({}, tmp_path / "old" / "adapter_model.bin")
    with pytest.raises(BadFile, match=r"adapter_model\.bin, a pickle"):
        lyc_fx.load(tmp_path / "old")
