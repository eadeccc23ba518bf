"""Every kind of weight, in every format that holds factors, on every road: the same bits, and the closed formula."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.errors import BadAdapter

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from kinds import ALPHA, IDS, KINDS, RANK, STRENGTH, Kind, Kinds, effective, kinds  # noqa: E402  # it imports the latter

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")
DTYPES = [torch.float64, torch.bfloat16]


def one_file(up: str, down: str, spelled: Callable[[str], str]) -> Callable[[Kind, Tensor, Tensor, Path], Path]:
    def write(kind: Kind, b: Tensor, a: Tensor, folder: Path) -> Path:
        name = spelled(kind.module)
        stored = {f"{name}.{up}.weight": b, f"{name}.{down}.weight": a, f"{name}.alpha": torch.tensor(ALPHA)}
        save_file(stored, folder / "adapter.safetensors")
        return folder / "adapter.safetensors"

    return write


def peft_directory(kind: Kind, b: Tensor, a: Tensor, folder: Path) -> Path:
    """An embedding's factors are those of its transpose, and a transposed convolution has none in PEFT."""
    name = f"base_model.model.{kind.module}"
    stored = {f"{name}.lora_B.weight": b, f"{name}.lora_A.weight": a}
    if kind.module.endswith("embed_tokens"):
        stored = {f"{name}.lora_embedding_A": b.t().contiguous(), f"{name}.lora_embedding_B": a.t().contiguous()}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": [kind.module]}
    config["fan_in_fan_out"] = kind.module == "square"
    save_file(stored, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


FORMATS = {
    "lycoris": one_file("lora_up", "lora_down", lambda name: f"lycoris_{name.replace('.', '_')}"),
    "kohya": one_file("lora_up", "lora_down", lambda name: f"lora_unet_{name.replace('.', '_')}"),
    "comfyui": one_file("lora_up", "lora_down", lambda name: f"diffusion_model.{name}"),
    "diffusers": one_file("lora_B", "lora_A", lambda name: f"transformer.{name}"),
    "peft": peft_directory,
}


def base(model: Kinds, folder: Path) -> Path:
    """A folder as transformers saves one: what is tied is stored once."""
    folder.mkdir()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    for second in ("lm_head.weight", "second.shared.weight", "second.shared.bias"):
        del state[second]
    save_file(state, folder / "model.safetensors")
    config = {"tie_word_embeddings": True, "vocab_size": 11, "architectures": ["KindsForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def reloaded(folder: Path, dtype: torch.dtype) -> Kinds:
    model, state = kinds(dtype), load_file(folder / "model.safetensors")
    if not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    missing, unexpected = model.load_state_dict(state, strict=False)
    tied = {"second.shared.weight", "second.shared.bias", "lm_head.weight"}
    assert not unexpected and set(missing) <= tied
    return model


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def roads(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kinds, GraphModule, Path]:
    """A model, live, captured, and stored; nothing changes it."""
    model = kinds(request.param)
    return model, lyc_fx.capture(model, (IDS,)), base(model, tmp_path_factory.mktemp("stored") / "base")


@pytest.mark.parametrize("format_", FORMATS)
def test_the_roads_agree_on_every_kind(format_: str, roads: tuple[Kinds, GraphModule, Path], tmp_path: Path) -> None:
    model, program, stored = roads
    dtype, before = model.lm_head.weight.dtype, effective(model)
    for name, kind in KINDS.items():
        if (format_, name) == ("peft", "transposed"):
            continue
        folder = tmp_path / name
        folder.mkdir()
        adapters = lyc_fx.load(FORMATS[format_](kind, *kind.factors(dtype), folder))
        live = copy.deepcopy(model)
        report = lyc_fx.merge(live, adapters, STRENGTH)
        assert len(report.applied) == len(kind.added(torch.zeros(kind.sides))) - (name == "shared"), name
        folded = lyc_fx.fold(lyc_fx.splice(program, adapters, STRENGTH), check=True)
        assert lyc_fx.history(folded)[-1].fired == len(report.applied), name
        outputs = {"live": live(IDS), "graph": folded(IDS)}
        lyc_fx.fold_checkpoint(stored, adapters, folder / "out", STRENGTH, transposed=("square.weight",))
        outputs["checkpoint"] = reloaded(folder / "out", dtype)(IDS)
        wanted, after = kind.wanted(model), effective(live)
        for weight, value in after.items():
            if weight in wanted:
                check(value, wanted[weight], name)
            elif (name, weight.partition(".")[0]) != ("weight-normed", "normed"):
                assert torch.equal(value, before[weight]), (name, weight)
        assert any(not torch.equal(a, b) for a, b in zip(outputs["live"], model(IDS), strict=True)), name
        for road, found in outputs.items():
            for ours, theirs in zip(found, outputs["live"], strict=True):
                assert torch.equal(ours, theirs), (name, road)


def check(value: Tensor, wanted: Tensor, name: str) -> None:
    if name == "weight-normed":  # stored as a direction and a length: each is rounded
        tolerance = 1e-12 if value.dtype == torch.float64 else 2**-7
        torch.testing.assert_close(value.double(), wanted, rtol=tolerance, atol=tolerance)
    elif value.dtype == torch.float64:
        assert (value - wanted).norm() <= 1e-12 * wanted.norm(), name
    else:
        assert torch.equal(value, wanted.to(value.dtype)), name


@pytest.mark.parametrize("names", [("query", "key", "value"), ("query",)])
def test_parts_of_an_interleaved_weight_are_refused(
    names: tuple[str, ...], roads: tuple[Kinds, GraphModule, Path], tmp_path: Path
) -> None:
    model, program, stored = roads
    tensors = {}
    for name in names:
        tensors[f"inter.{name}.lora_A.weight"] = torch.randn(RANK, 6)
        tensors[f"inter.{name}.lora_B.weight"] = torch.randn(5, RANK)
    adapters = lyc_fx.load(tensors)
    for use in (
        lambda: lyc_fx.merge(copy.deepcopy(model), adapters),
        lambda: lyc_fx.splice(program, adapters),
        lambda: lyc_fx.fold_checkpoint(stored, adapters, tmp_path / "out"),
    ):
        with pytest.raises(BadAdapter, match=r"interleave"):
            use()
    assert not (tmp_path / "out").exists()


def test_the_roads_compute_what_peft_computes(tmp_path: Path) -> None:
    """All at once. (PEFT adapts a shared module at one of its places alone, and no Conv1D beside experts.)"""
    model = kinds()
    modules = ["embed_tokens", "lm_head", "fused.qkv_proj", "apart.q_proj", "query_key_value", "normed"]
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=modules, target_parameters=["experts.up_proj"])
    theirs = peft.get_peft_model(copy.deepcopy(model), config, autocast_adapter_dtype=False).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 2)
    theirs.save_pretrained(tmp_path / "adapter")
    adapters, wanted = lyc_fx.load(tmp_path / "adapter"), theirs(IDS)
    live = copy.deepcopy(model)
    assert len(lyc_fx.merge(live, adapters).applied) == len(modules) + 1
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (IDS,)), adapters), check=True)
    stored = base(model, tmp_path / "base")
    lyc_fx.fold_checkpoint(stored, adapters, tmp_path / "out")
    found = {"live": live(IDS), "graph": folded(IDS), "checkpoint": reloaded(tmp_path / "out", torch.float64)(IDS)}
    for road, outputs in found.items():
        for position, (ours, value) in enumerate(zip(outputs, wanted, strict=True)):
            assert (ours - value).abs().max() <= 1e-12 * value.abs().max(), (road, position)
