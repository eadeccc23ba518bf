"""A vocabulary with new rows and a new head, which an adapter has as a whole: written into a folder, and read again."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, Unsupported

peft = pytest.importorskip("peft")
hf = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own warnings

SMALL = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, bos_token_id=1,
             eos_token_id=2, pad_token_id=0, vocab_size=50)  # fmt: skip
IDS = torch.tensor([[1, 51, 52, 4]])


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    return hf.LlamaForCausalLM(hf.LlamaConfig(**SMALL, **more)).double().eval()


def trained(model: nn.Module, folder: Path, **settings: Any) -> Any:
    """PEFT's model with random values for all that it trains, saved."""
    theirs = peft.get_peft_model(copy.deepcopy(model), peft.LoraConfig(r=2, lora_alpha=3, **settings)).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) / 4)
    theirs.save_pretrained(folder, save_embedding_layers=False)
    return theirs


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("shards", ["1GB", "6KB"])
def test_new_rows_of_a_vocabulary(shards: str, tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base", max_shard_size=shards)
    big = copy.deepcopy(base)
    big.resize_token_embeddings(53)
    theirs = trained(big, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    report = lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    folded = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    assert folded.config.vocab_size == 53
    torch.testing.assert_close(logits(folded), logits(theirs), rtol=1e-9, atol=1e-9)
    assert "lm_head.weight has 53 rows, the base 50: it is written as the adapter has it" in report.notes
    assert report.nothing_changed is None and "lm_head.weight" not in report.unchanged
    if shards != "1GB":
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        files = {name: load_file(tmp_path / "out" / name) for name in set(index["weight_map"].values())}
        assert all(key in files[name] for key, name in index["weight_map"].items())
        sizes = [t.numel() * t.element_size() for tensors in files.values() for t in tensors.values()]
        assert index["metadata"]["total_size"] == sum(sizes)


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_new_head(dtype: torch.dtype | None, tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    model = hf.LlamaForSequenceClassification(hf.LlamaConfig(**SMALL, num_labels=3)).double().eval()
    model.model.load_state_dict(base.model.state_dict())
    theirs = trained(model, tmp_path / "adapter", task_type="SEQ_CLS", target_modules=["q_proj"])
    lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out", dtype=dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}
    stored = load_file(tmp_path / "out" / "model.safetensors")["score.weight"]
    assert stored.dtype == (dtype or torch.float64)
    if dtype is None:
        folded = hf.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
        ids = IDS.clamp(max=49)
        torch.testing.assert_close(logits(folded, ids), logits(theirs, ids), rtol=1e-9, atol=1e-9)


def test_what_cannot_be_made_so_is_refused(tmp_path: Path) -> None:
    base, tied = llama(tie_word_embeddings=False), llama(tie_word_embeddings=True)
    base.save_pretrained(tmp_path / "base")
    tied.save_pretrained(tmp_path / "tied")
    big = copy.deepcopy(base)
    big.resize_token_embeddings(53)
    trained(big, tmp_path / "whole", target_modules=["q_proj"], modules_to_save=["embed_tokens"])
    trained(big, tmp_path / "factors", target_modules=["embed_tokens"])
    out = tmp_path / "out"
    with pytest.raises(BadAdapter, match=r"embed_tokens has another shape than in the base, .* at strength 1"):
        lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "whole", out, 0.7)
    with pytest.raises(Unsupported, match=r"embed_tokens\.weight has another number of rows in the adapter"):
        lyc_fx.fold_checkpoint(tmp_path / "tied", tmp_path / "whole", out)
    with pytest.raises(BadAdapter, match=r"does not fit model.embed_tokens.weight \(50, 16\)"):
        lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "factors", out)
    with pytest.raises(
        BadAdapter, match=r"the value is \(53, 16\), the weight asks for \(50, 16\)"
    ):  # no configuration
        lyc_fx.fold_checkpoint(tmp_path / "base" / "model.safetensors", tmp_path / "whole", tmp_path / "o.safetensors")
    assert not out.exists()


@pytest.mark.parametrize("task", ["SEQ_CLS", "TOKEN_CLS", None])
def test_the_class_of_a_new_head_is_what_the_training_says(task: str | None, tmp_path: Path) -> None:
    """`score` is the head of both kinds of classifiers."""
    base = llama(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    kind = "ForSequenceClassification" if task == "SEQ_CLS" else "ForTokenClassification"
    torch.manual_seed(3)
    model = getattr(hf, f"Llama{kind}")(hf.LlamaConfig(**SMALL, num_labels=3)).double().eval()
    model.model.load_state_dict(base.model.state_dict())
    saved = {} if task else {"modules_to_save": ["score"]}
    theirs = trained(model, tmp_path / "adapter", task_type=task, target_modules=["q_proj"], **saved)
    report = lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [f"Llama{kind}" if task else "LlamaForCausalLM"]
    assert len(config["id2label"]) == 3
    assert any("the model class with score" in note for note in report.notes) == (task is None)
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    ids = IDS.clamp(max=49)
    torch.testing.assert_close(logits(folded, ids), logits(theirs, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("task", "kind"), [("SEQ_CLS", "SequenceClassification"), ("TOKEN_CLS", "TokenClassification"),
                                            ("QUESTION_ANS", "QuestionAnswering")])  # fmt: skip
def test_heads_of_several_layers_and_of_other_names(task: str, kind: str, tmp_path: Path) -> None:
    """RoBERTa's sequence classifier is two layers, its head for answers is `qa_outputs`."""
    settings = hf.RobertaConfig(**SMALL, max_position_embeddings=20, num_labels=2 if task == "QUESTION_ANS" else 5)
    torch.manual_seed(0)
    base = hf.RobertaForMaskedLM(settings).double().eval()
    base.save_pretrained(tmp_path / "base")
    model = getattr(hf, f"RobertaFor{kind}")(settings).double().eval()
    model.roberta.load_state_dict(base.roberta.state_dict())
    saved = {"modules_to_save": ["qa_outputs"]} if task == "QUESTION_ANS" else {}
    theirs = trained(model, tmp_path / "adapter", task_type=task, target_modules=["query"], **saved)
    lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == [f"RobertaFor{kind}"]
    if task != "QUESTION_ANS":
        assert config["id2label"] == {str(i): f"LABEL_{i}" for i in range(5)}
    folded = type(model).from_pretrained(tmp_path / "out", dtype=torch.float64).eval()
    ids = IDS.clamp(max=49)
    with torch.no_grad():
        ours, reference = folded(ids).to_tuple(), theirs(ids).to_tuple()
    for one, other in zip(ours, reference, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def gemma3() -> Any:
    """Its class has `model.language_model.embed_tokens`, its checkpoint `language_model.model.embed_tokens`."""
    text = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, head_dim=8,
                num_key_value_heads=1, vocab_size=50, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    sight = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                 patch_size=14)  # fmt: skip
    torch.manual_seed(0)
    config = hf.Gemma3Config(text_config=text, vision_config=sight, mm_tokens_per_image=4, tie_word_embeddings=False)
    return hf.Gemma3ForConditionalGeneration(config).double().eval()


def test_an_embedding_under_its_name_in_memory_is_no_new_head(tmp_path: Path) -> None:
    base = gemma3()
    base.save_pretrained(tmp_path / "base")
    stored = set(load_file(tmp_path / "base" / "model.safetensors"))
    own = next(name for name in base.state_dict() if name.endswith("embed_tokens.weight"))
    assert own not in stored, "transformers has other names in memory"
    value = torch.randn(53, 16, dtype=torch.float64)
    key = f"base_model.model.{own.removesuffix('.weight')}.weight"
    factors = {f"base_model.model.{own.split('embed')[0]}layers.0.self_attn.q_proj.lora_{n}.weight": f for n, f in
               {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}.items()}  # fmt: skip
    adapters = lyc_fx.load({key: value, **factors}, config={"peft_type": "LORA", "r": 2, "lora_alpha": 3,
                                                            "modules_to_save": ["embed_tokens"]})  # fmt: skip
    report = lyc_fx.fold_checkpoint(tmp_path / "base", adapters, tmp_path / "out")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert set(written) == stored
    [name] = [each for each in stored if each.endswith("embed_tokens.weight")]
    assert torch.equal(written[name], value)
    assert f"{name} has 53 rows, the base 50: it is written as the adapter has it" in report.notes
    assert json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]["vocab_size"] == 53


def test_a_saved_module_under_a_name_that_nothing_knows_is_no_new_head(tmp_path: Path) -> None:
    base = llama(tie_word_embeddings=False)
    base.save_pretrained(tmp_path / "base")
    key = "base_model.model.model.language_model.embed_tokens.weight"
    factors = {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.randn(2, 16),
               "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": torch.randn(16, 2)}  # fmt: skip
    adapters = lyc_fx.load({key: torch.randn(50, 16), **factors}, config={"peft_type": "LORA", "r": 2, "lora_alpha": 3})
    with pytest.raises(BadAdapter, match=r"model.language_model.embed_tokens"):
        lyc_fx.fold_checkpoint(tmp_path / "base", adapters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_saved_module_within_what_is_adapted_is_no_new_head(tmp_path: Path) -> None:
    """Nothing that is stored begins with `model.`, but the class's names do."""
    gemma3().save_pretrained(tmp_path / "base")
    assert not any(name.startswith("model.") for name in load_file(tmp_path / "base" / "model.safetensors"))
    stem = "base_model.model.model.language_model"
    factors = {f"{stem}.layers.0.self_attn.q_proj.lora_{n}.weight": f for n, f in
               {"A": torch.randn(2, 16), "B": torch.randn(16, 2)}.items()}  # fmt: skip
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3}
    adapters = lyc_fx.load({f"{stem}.embed_token.weight": torch.randn(50, 16), **factors}, config=config)
    with pytest.raises(BadAdapter, match=r"model\.language_model\.embed_token: no such weight"):
        lyc_fx.fold_checkpoint(tmp_path / "base", adapters, tmp_path / "out")
    assert not (tmp_path / "out").exists()
