"""What is written for PEFT: read again it is the same, and PEFT loads it and computes the same."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import many
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms import random_adapter
from lyc_fx.algorithms.boft_input import InputBOFT
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.glora import GLoRA
from lyc_fx.algorithms.ia3 import IA3
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.algorithms.loha import LoHa
from lyc_fx.algorithms.lokr import LoKr
from lyc_fx.algorithms.oft_input import InputOFT
from lyc_fx.errors import Unsupported
from lyc_fx.formats.peft import Peft

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


class Block(nn.Module):
    """A name that ends like one outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(40, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(9, 24)
        self.fc = nn.Linear(24, 40)
        self.block = Block()
        self.norm = nn.LayerNorm(24)
        self.conv = nn.Conv2d(24, 10, 3, stride=2, padding=1)
        self.point = nn.Conv2d(24, 12, 1)

    def forward(self, ids: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.norm(self.block(self.fc(self.emb(ids)))), self.conv(image), self.point(image)


def inputs() -> tuple[Tensor, Tensor]:
    return torch.arange(6).reshape(2, 3), torch.randn(2, 24, 7, 6, generator=torch.Generator().manual_seed(1))


def model() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def save(adapters: AdapterSet, folder: Path) -> dict[str, Any]:
    contents = Peft().write(adapters)
    folder.mkdir(exist_ok=True)
    save_file(dict(contents.tensors), folder / "adapter_model.safetensors", dict(contents.metadata))
    (folder / "adapter_config.json").write_text(json.dumps(contents.config))
    assert contents.config is not None
    return dict(contents.config)


def check(adapters: AdapterSet, folder: Path) -> dict[str, Any]:
    """Written, read by us and loaded by PEFT: three times the same effect, which is one on all the modules."""
    config = save(adapters, folder)
    merged, again = model(), model()
    report = lyc_fx.merge(merged, adapters)
    rows = {(row.target, row.scale, row.rank) for row in report.applied}
    assert {(row.target, row.scale, row.rank) for row in lyc_fx.merge(again, lyc_fx.load(folder)).applied} == rows
    for (name, tensor), base in zip(again.named_parameters(), model().parameters(), strict=True):
        torch.testing.assert_close(tensor, merged.get_parameter(name), rtol=1e-6, atol=1e-7)
        assert torch.equal(tensor, base) == (name not in {row.target for row in report.applied}), name
    theirs = peft.PeftModel.from_pretrained(model(), str(folder)).eval()
    for ours, wanted in zip(merged(*inputs()), theirs(*inputs()), strict=True):
        assert (ours - wanted).abs().max() <= 2e-5 * wanted.abs().max()
    return config


def made(family: type[Adapter], shape: tuple[int, ...], seed: int, **options: Any) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    adapter = random_adapter(family, shape, generator=generator, **options)
    return adapter.with_factors({n: f * 0.3 for n, f in adapter.factors().items()})


SHAPES = {"fc": (40, 24), "block.fc": (24, 40), "conv": (10, 24, 3, 3), "point": (12, 24, 1, 1)}
RANKS = {"fc": (3, 5.0), "block.fc": (4, 2.0), "conv": (3, 7.0), "point": (3, None)}


def each(family: type[Adapter], *, skip: tuple[str, ...] = (), layout: Any = None) -> AdapterSet:
    named = {
        name: made(family, shape, i, rank=RANKS[name][0], alpha=RANKS[name][1], layout=layout)
        for i, (name, shape) in enumerate(SHAPES.items())
        if name not in skip
    }
    return many(**named)


def test_lora_with_ranks_and_alphas_of_its_own(tmp_path: Path) -> None:
    config = check(each(LoCon), tmp_path)
    assert config["rank_pattern"] == {r"^block\.fc": 4} and len(config["alpha_pattern"]) == 3
    assert config["target_modules"] == ["fc", "block.fc", "conv", "point"] and not config["use_dora"]


def test_patterns_are_of_one_module_alone(tmp_path: Path) -> None:
    """`fc` is also the end of `block.fc`: each has its own scale, whichever is in the patterns."""
    for swap in (False, True):
        ranks = {"fc": (3, 5.0), "block.fc": (4, 2.0), "conv": (4, 2.0) if swap else (3, 5.0)}
        named = {n: made(LoCon, SHAPES[n], 0, rank=r, alpha=a) for n, (r, a) in ranks.items()}
        config = check(many(**named), tmp_path)
        assert list(config["rank_pattern"]) == (["^fc"] if swap else [r"^block\.fc"])


def test_dora(tmp_path: Path) -> None:
    named = {}
    for name, adapter in ((e.module, e.adapter) for e in each(LoCon).entries):
        weight = model().get_parameter(f"{name}.weight").detach()
        magnitude = weight.flatten(1).norm(dim=1).reshape(-1, *[1] * (weight.dim() - 1)) * 1.3
        named[name] = LoCon(**adapter.factors(), alpha=adapter.alpha, magnitude=magnitude)
    assert check(many(**named), tmp_path)["use_dora"]
    named["fc"] = named["fc"].with_factors({"magnitude": None})  # type: ignore[dict-item]
    with pytest.raises(Unsupported, match=r"use_dora is for all modules, here it would be for: block\.fc, conv, point"):
        Peft().write(many(**named))


def test_lora_with_a_bias(tmp_path: Path) -> None:
    named = each(LoCon, skip=("block.fc", "conv", "point")).entries
    bias = Entry("fc", "bias", Full(diff=torch.randn(40)), ("fc.diff_b",))
    assert check(AdapterSet((*named, bias)), tmp_path)["lora_bias"]
    with pytest.raises(Unsupported, match="lora_bias is for all modules, here it would be for: fc"):
        Peft().write(AdapterSet((*each(LoCon).entries, bias)))


@pytest.mark.parametrize("layout", [v for v in LoHa.layouts if "magnitude" not in v], ids=len)
def test_loha(layout: frozenset[str], tmp_path: Path) -> None:
    skip = ("point",) if "t1" not in layout else ("fc", "block.fc", "point")
    if "t1" not in layout:  # LyCORIS and PEFT agree on the matrices of a convolution
        assert not check(each(LoHa, skip=skip, layout=layout), tmp_path)["use_effective_conv2d"]
    else:
        assert check(each(LoHa, skip=skip, layout=layout), tmp_path)["use_effective_conv2d"]


def lokr(shape: tuple[int, int], sides: tuple[tuple[int, int], tuple[int, int]], rank: int | None) -> LoKr:
    (rows, columns), (k, n) = sides
    assert (rows * k, columns * n) == shape
    w1 = torch.randn(rows, columns)
    if rank is None:
        return LoKr(w1=w1, w2=torch.randn(k, n) * 0.1, alpha=9.0)
    return LoKr(w1=w1, w2_a=torch.randn(k, rank) * 0.1, w2_b=torch.randn(rank, n), alpha=3.0)


def test_lokr(tmp_path: Path) -> None:
    fc = lokr((40, 24), ((4, 4), (10, 6)), 2)
    block = lokr((24, 40), ((4, 4), (6, 10)), None)
    config = check(many(**{"fc": fc, "block.fc": block}), tmp_path)
    assert config["decompose_factor"] == 4 and not config["decompose_both"]
    odd = lokr((24, 40), ((6, 5), (4, 8)), 2)
    with pytest.raises(Unsupported, match=r"one decompose_factor, and no one gives those of fc, block\.fc"):
        Peft().write(many(**{"fc": fc, "block.fc": odd}))


def test_rotations(tmp_path: Path) -> None:
    oft = {n: InputOFT(blocks=torch.randn(SHAPES[n][1] // 8, 8, 8) * 0.1, terms=5) for n in ("fc", "block.fc", "point")}
    assert check(many(**oft), tmp_path)["use_cayley_neumann"]
    exact = {n: InputOFT(blocks=torch.randn(1, 8, 8) * 0.4, alpha=0.9) for n in oft}
    config = check(many(**exact), tmp_path)
    assert config["block_share"] and config["coft"] and not config["use_cayley_neumann"]
    boft = {
        n: InputBOFT(blocks=torch.randn(1, SHAPES[n][1] // 8, 8, 8), gain=torch.rand(SHAPES[n][0], 1) + 0.5)
        for n in ("fc", "block.fc")
    }
    check(many(**boft), tmp_path)
    with pytest.raises(Unsupported, match=r"one number of terms for all modules, here there are \[0, 5\]"):
        Peft().write(many(**{"fc": oft["fc"], "point": exact["point"]}))


TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "ia3": ("IA3Config", {"target_modules": ["fc", "block.fc", "conv"], "feedforward_modules": ["block.fc"]}),
    "ia3 output": ("IA3Config", {"target_modules": ["fc", "conv"], "feedforward_modules": []}),
    "lokr": ("LoKrConfig", {"target_modules": ["fc", "conv", "point"], "r": 2, "alpha": 3}),
    "lokr of a factor": ("LoKrConfig", {"target_modules": ["fc", "conv"], "r": 2, "alpha": 3, "decompose_factor": 2}),
    "lokr of two": ("LoKrConfig", {"target_modules": ["fc", "conv"], "r": 1, "alpha": 3, "decompose_both": True}),
    "lokr tucker": ("LoKrConfig", {"target_modules": ["fc", "conv"], "r": 2, "alpha": 3, "use_effective_conv2d": True}),
    "lora embedding": ("LoraConfig", {"target_modules": ["emb", "fc"], "lora_alpha": 3}),
    "oft embedding": ("OFTConfig", {"target_modules": ["emb"], "oft_block_size": 6}),
    "modules": ("LoraConfig", {"target_modules": ["fc"], "modules_to_save": ["norm"], "lora_alpha": 3}),
    "biases": ("LoraConfig", {"target_modules": ["fc"], "bias": "lora_only", "lora_alpha": 3}),
    "adalora": ("AdaLoraConfig", {"init_r": 4, "total_step": 9, "lora_alpha": 3, "target_modules": ["fc"]}),
}


@pytest.mark.parametrize("name", TRAINED)
def test_what_peft_trained_goes_back_to_peft(name: str, tmp_path: Path) -> None:
    config, settings = TRAINED[name]
    adapted = peft.get_peft_model(copy.deepcopy(model()), getattr(peft, config)(**settings)).eval()
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    adapted.save_pretrained(str(tmp_path / "trained"))
    check(lyc_fx.load(tmp_path / "trained"), tmp_path / "written")


def test_what_peft_cannot_hold_is_refused_by_name() -> None:
    locon, other = made(LoCon, (40, 24), 0), made(LoHa, (24, 40), 0)
    with pytest.raises(Unsupported, match="one method, not LORA and LOHA: write each apart"):
        Peft().write(many(**{"fc": locon, "block.fc": other}))
    with pytest.raises(Unsupported, match="cannot write GLoRA for PEFT: fc"):
        Peft().write(many(fc=made(GLoRA, (40, 24), 0)))
    with pytest.raises(Unsupported, match="conv: a Tucker core"):
        Peft().write(many(conv=made(LoCon, SHAPES["conv"], 0, layout=frozenset({"up", "down", "mid"}))))
    with pytest.raises(Unsupported, match="fc: PEFT scales the bias with the output, this adapter does not"):
        Peft().write(many(fc=IA3(weight=torch.randn(40), on_input=0)))
    column = LoCon(up=torch.randn(40, 2), down=torch.randn(2, 24), magnitude=torch.rand(1, 24))
    with pytest.raises(Unsupported, match=r"fc: a magnitude of shape \(1, 24\); PEFT's is one per output"):
        Peft().write(many(fc=column))
