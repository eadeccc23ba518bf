"""Against PEFT's forward or merge: IA3 on the output, OFT, BOFT, AdaLoRA, whole modules, biases, experts, Conv1D."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import one
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, BadFile, Unsupported
from lyc_fx.formats.peft import Peft
from lyc_fx.report import Report

peft = pytest.importorskip("peft")
Conv1D = pytest.importorskip("transformers.pytorch_utils").Conv1D
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


class Net(nn.Module):
    """Linear with and without bias, convolutions and an embedding, out ≠ in."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 24)
        self.fc = nn.Linear(24, 40)
        self.bare = nn.Linear(40, 15, bias=False)
        self.norm = nn.LayerNorm(15)
        self.conv = nn.Conv2d(24, 10, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 10, 1)

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm(self.bare(self.fc(self.emb(ids)))), self.conv(image), self.point(image)


class Gpt(nn.Module):
    """Layers that store their weights `(in, out)`; one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn = Conv1D(36, 12)
        self.c_proj = Conv1D(36, 36)
        nn.init.normal_(self.c_attn.bias)
        nn.init.normal_(self.c_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(torch.tanh(self.c_attn(x)))


class Experts(nn.Module):
    """Parameters of three dimensions, `(experts, out, in)`."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 10, 6))
        self.down_proj = nn.Parameter(torch.randn(3, 6, 5))

    def forward(self, x: Tensor) -> Tensor:
        gate, up = torch.einsum("eoi,bi->ebo", self.gate_up_proj, x).chunk(2, -1)
        return torch.einsum("eoi,ebi->bo", self.down_proj, torch.tanh(gate) * up)


class Moe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.experts = Experts()

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(self.fc(x))


def images() -> tuple[Tensor, Tensor]:
    return torch.arange(6).reshape(2, 3), torch.randn(2, 24, 7, 6, generator=torch.Generator().manual_seed(1))


def train(model: nn.Module, config: str, folder: Path, **settings: Any) -> nn.Module:
    """PEFT's model with random factors, after it saved them."""
    adapted = peft.get_peft_model(copy.deepcopy(model), getattr(peft, config)(**settings)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted(*INPUTS[type(model)]())  # COFT shrinks its factors on the way
    adapted.save_pretrained(str(folder))
    return adapted


INPUTS: dict[type, Any] = {
    Net: images,
    Gpt: lambda: (torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(1)),),
    Moe: lambda: (torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),),
}


def made(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def check(model: nn.Module, wanted: nn.Module, folder: Path) -> Report:
    """Merge what was saved, and compare every output."""
    live, inputs = copy.deepcopy(model), INPUTS[type(model)]()
    report = lyc_fx.merge(live, lyc_fx.load(folder))
    assert report.unused == ()
    with torch.no_grad():
        pairs = [each if isinstance(each, tuple) else (each,) for each in (live(*inputs), wanted(*inputs))]
        changed = live(*inputs)
    for ours, theirs in zip(*pairs, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    base = model(*inputs)
    assert not torch.allclose(*(x[0] if isinstance(x, tuple) else x for x in (changed, base)), atol=1e-2)
    return report


def targets(report: Report) -> list[str]:
    return sorted(row.target for row in report.applied)


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

    from lyc_fx.families.boft_input import InputBOFT

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


GPT: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("LoraConfig", {"r": 4, "lora_alpha": 3, "fan_in_fan_out": True}),
    "dora": ("LoraConfig", {"r": 4, "lora_alpha": 3, "fan_in_fan_out": True, "use_dora": True}),
    "ia3": ("IA3Config", {"feedforward_modules": ["c_proj"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", GPT)
def test_conv1d_on_three_roads(name: str, tmp_path: Path) -> None:
    model, (config, settings) = made(Gpt), GPT[name]
    adapted = train(model, config, tmp_path, target_modules=["c_attn", "c_proj"], **settings)
    report = check(model, adapted, tmp_path)
    bias = ["c_attn.bias"] if name == "ia3" else []
    assert targets(report) == [*bias, "c_attn.weight", "c_proj.weight"]
    adapters, inputs = lyc_fx.load(tmp_path), INPUTS[Gpt]()
    live = copy.deepcopy(model)
    lyc_fx.merge(live, adapters, 0.7)
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, inputs), adapters, 0.7))
    save_file(model.state_dict(), tmp_path / "base.safetensors")
    lyc_fx.fold_checkpoint(
        tmp_path / "base.safetensors", adapters, tmp_path / "out.safetensors", 0.7, transposed=("c_proj.weight",)
    )
    stored = load_file(tmp_path / "out.safetensors")
    for key, tensor in live.state_dict().items():
        assert torch.equal(folded.state_dict()[key], tensor), key
        assert torch.equal(stored[key], tensor), key
        assert torch.equal(model.state_dict()[key], tensor) == (f"{key}" not in targets(report))


@pytest.mark.parametrize("name", GPT)
def test_conv1d_is_written(name: str, tmp_path: Path) -> None:
    """The factors are (out, in), whatever the layer: PEFT finds out by itself that this one is Conv1D."""
    model, (config, settings) = made(Gpt), GPT[name]
    wanted = train(model, config, tmp_path, target_modules=["c_attn", "c_proj"], **settings)
    contents = Peft().write(lyc_fx.load(tmp_path))
    folder = tmp_path / "written"
    folder.mkdir()
    save_file(dict(contents.tensors), folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(contents.config))
    theirs = peft.PeftModel.from_pretrained(copy.deepcopy(model), str(folder)).eval()
    torch.testing.assert_close(theirs(*INPUTS[Gpt]()), wanted(*INPUTS[Gpt]()), rtol=1e-5, atol=1e-5)
    check(model, theirs, folder)


def test_a_whole_conv1d_is_as_the_model_stores_it(tmp_path: Path) -> None:
    model = made(Gpt)
    adapted = train(
        model, "LoraConfig", tmp_path, target_modules=["c_attn"], modules_to_save=["c_proj"], fan_in_fan_out=True
    )
    report = check(model, adapted, tmp_path)
    assert targets(report) == ["c_attn.weight", "c_proj.bias", "c_proj.weight"]
    live = copy.deepcopy(model)
    lyc_fx.merge(live, lyc_fx.load(tmp_path))
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert torch.equal(live.c_proj.weight, saved["base_model.model.c_proj.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replacement_is_exact_at_strength_one(dtype: torch.dtype) -> None:
    """Also where the two are so far apart that V - W is not exact in float64."""
    from lyc_fx.families.replace import Replace

    layer = nn.Linear(3, 5).to(dtype)
    nn.init.constant_(layer.weight, 3e30)
    value = (torch.randn(5, 3) * 1e-30).to(dtype)
    lyc_fx.merge(layer, one(Replace(value=value), "lycoris_"))
    assert torch.equal(layer.weight, value)


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


def test_methods_that_are_not_read_are_named(tmp_path: Path) -> None:
    model = made(Net)
    train(model, "VeraConfig", tmp_path, target_modules=["fc"], r=4)
    with pytest.raises(Unsupported, match=r"PEFT's method VERA; lyc-fx reads LORA.*merge_and_unload"):
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
