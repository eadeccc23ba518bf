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
    with pytest.raises(BadAdapter, match=r"embed_tokens is of another shape than the base's: .* strength 1 only"):
        lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "whole", out, 0.7)
    with pytest.raises(Unsupported, match=r"embed_tokens.weight has other rows in the adapter than in the base"):
        lyc_fx.fold_checkpoint(tmp_path / "tied", tmp_path / "whole", out)
    with pytest.raises(BadAdapter, match=r"does not fit model.embed_tokens.weight \(50, 16\)"):
        lyc_fx.fold_checkpoint(tmp_path / "base", tmp_path / "factors", out)
    with pytest.raises(
        BadAdapter, match=r"the value is \(53, 16\), the weight asks for \(50, 16\)"
    ):  # no configuration
        lyc_fx.fold_checkpoint(tmp_path / "base" / "model.safetensors", tmp_path / "whole", tmp_path / "o.safetensors")
    assert not out.exists()
