"""Against PEFT's forward on layers that store their weights `(in, out)`."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import lyc_fx
from lyc_fx.formats.peft import Peft

peft = pytest.importorskip("peft")
pytest.importorskip("transformers")
from peft_models import INPUTS, Gpt, check, made, targets, train  # noqa: E402  # it imports both

pytestmark = pytest.mark.filterwarnings("ignore")  # the peer's own warnings


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
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, inputs), adapters, 0.7), check=True)
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
