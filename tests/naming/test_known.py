"""Names of transformers' classes without transformers: the same as with it, for every class that is known here."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import lyc_fx
from lyc_fx.naming.disk import names_in_memory
from lyc_fx.naming.known import TYPES, known_names

hf = pytest.importorskip("transformers", "5")
pytestmark = pytest.mark.filterwarnings("ignore")  # the library's own warnings

TEXT: dict[str, Any] = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                            num_key_value_heads=1, vocab_size=50)  # fmt: skip
SIGHT: dict[str, Any] = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                             image_size=28, patch_size=14)  # fmt: skip


def clip_and_llama(kind: str) -> Any:
    config = getattr(hf, f"{kind}Config")(
        text_config=hf.LlamaConfig(**TEXT), vision_config=hf.CLIPVisionConfig(**SIGHT), image_token_index=49
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def qwen_vl(kind: str, **sight: int) -> Any:
    text = TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
    vision = dict(depth=1, hidden_size=16, num_heads=2, **sight)
    config = getattr(hf, f"{kind}Config")(text_config=text, vision_config=vision)
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def siglip_and_llama(kind: str) -> Any:
    config = getattr(hf, f"{kind}Config")(
        text_config=hf.LlamaConfig(**TEXT), vision_config=hf.SiglipVisionConfig(**SIGHT)
    )
    return getattr(hf, f"{kind}ForConditionalGeneration")(config)


def mistral3() -> Any:
    sight = hf.PixtralVisionConfig(**SIGHT)
    return hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(text_config=hf.LlamaConfig(**TEXT), vision_config=sight)
    )


def mllama() -> Any:
    sight = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_global_layers=1, attention_heads=2,
                 image_size=28, patch_size=14, intermediate_layers_indices=[0], vision_output_dim=32, max_num_tiles=1,
                 supported_aspect_ratios=[[1, 1]])  # fmt: skip
    text = TEXT | {"cross_attention_layers": [0], "pad_token_id": 0}
    return hf.MllamaForConditionalGeneration(hf.MllamaConfig(text_config=text, vision_config=sight))


def video_llava() -> Any:
    text, sight = hf.LlamaConfig(**TEXT), hf.CLIPVisionConfig(**SIGHT)
    return hf.VideoLlavaForConditionalGeneration(hf.VideoLlavaConfig(text_config=text, vision_config=sight))


MODELS: dict[str, Any] = {
    "llava": lambda: clip_and_llama("Llava"),
    "llava_next": lambda: clip_and_llama("LlavaNext"),
    "vipllava": lambda: clip_and_llama("VipLlava"),
    "gemma3": lambda: hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=TEXT | {"head_dim": 8}, vision_config=SIGHT, mm_tokens_per_image=4)
    ),
    "paligemma": lambda: hf.PaliGemmaForConditionalGeneration(
        hf.PaliGemmaConfig(text_config=TEXT | {"model_type": "gemma", "head_dim": 8}, vision_config=SIGHT)
    ),
    "llava_next_video": lambda: clip_and_llama("LlavaNextVideo"),
    "llava_onevision": lambda: siglip_and_llama("LlavaOnevision"),
    "aya_vision": lambda: siglip_and_llama("AyaVision"),
    "video_llava": video_llava,
    "mistral3": mistral3,
    "mllama": mllama,
    "qwen2_vl": lambda: qwen_vl("Qwen2VL", embed_dim=16, mlp_ratio=2),
    "qwen2_5_vl": lambda: qwen_vl("Qwen2_5_VL", intermediate_size=24, out_hidden_size=16),
    "vit": lambda: hf.ViTForImageClassification(hf.ViTConfig(**SIGHT)),
    "dinov2": lambda: hf.Dinov2ForImageClassification(hf.Dinov2Config(**SIGHT)),
    "dinov2_with_registers": lambda: hf.Dinov2WithRegistersForImageClassification(
        hf.Dinov2WithRegistersConfig(**SIGHT)
    ),
    "minimax": lambda: hf.MiniMaxForCausalLM(hf.MiniMaxConfig(**TEXT, num_local_experts=3)),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**TEXT, num_local_experts=3)),
    "gpt_neox": lambda: hf.GPTNeoXForCausalLM(
        hf.GPTNeoXConfig(**{k: v for k, v in TEXT.items() if k != "num_key_value_heads"})
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_names_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    MODELS[name]().save_pretrained(tmp_path)
    stored = list(load_file(tmp_path / "model.safetensors"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == name
    theirs, ours = names_in_memory(config, stored), known_names(config, stored)
    ours = {memory: disk for memory, disk in ours.items() if ".experts." not in memory}  # these are converted
    assert theirs, "the library has other names for it"
    assert ours == theirs


def test_every_type_is_compared() -> None:
    assert set(MODELS) == TYPES


def test_a_folder_takes_them_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = MODELS["gemma3"]().double()
    model.save_pretrained(tmp_path / "base")
    module = "model.language_model.layers.0.self_attn.q_proj"
    before = model.get_submodule(module).weight.detach().clone()
    up, down = (torch.randn(s, dtype=torch.float64) for s in ((before.shape[0], 2), (2, before.shape[1])))
    tensors = {f"{module}.lora_up.weight": up, f"{module}.lora_down.weight": down,
               f"{module}.alpha": torch.tensor(3.0)}  # fmt: skip
    monkeypatch.setitem(sys.modules, "transformers", None)
    report = lyc_fx.fold_checkpoint(tmp_path / "base", tensors, tmp_path / "out", 0.7)
    [row] = report.applied
    assert row.target == "language_model.model.layers.0.self_attn.q_proj.weight"
    written = load_file(tmp_path / "out" / "model.safetensors")[row.target]
    torch.testing.assert_close(written, before + 0.7 * 1.5 * up @ down, rtol=1e-12, atol=1e-12)


def test_a_name_that_is_stored_stays_that_tensor_s() -> None:
    config = {"model_type": "llava"}
    stored = ["language_model.model.x.weight", "model.language_model.x.weight", "lm_head.weight"]
    assert known_names(config, stored) == {}
    assert known_names({"model_type": "llama"}, ["vision_tower.x.weight"]) == {}


def test_a_name_that_two_tensors_would_have_is_none_s() -> None:
    stored = ["language_model.model.x.weight", "language_model.x.weight", "language_model.y.weight"]
    assert known_names({"model_type": "llava"}, stored) == {"model.language_model.y.weight": "language_model.y.weight"}
