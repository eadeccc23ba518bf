"""Tied embeddings in a model's folder: an adapter of the head changes the head alone, of the embedding that alone."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter, Unsupported

VOCABULARY, WIDTH, STRENGTH = 50, 16, 0.7
SIZES = dict(vocab_size=VOCABULARY, bos_token_id=1, eos_token_id=2)


def llama(**more: Any) -> nn.Module:
    config = hf.LlamaConfig(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                            tie_word_embeddings=True, **SIZES, **more)  # fmt: skip
    return hf.LlamaForCausalLM(config)


def gpt2() -> nn.Module:
    return hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=WIDTH, n_layer=1, n_head=2, n_positions=12, **SIZES))


def bert() -> nn.Module:
    config = hf.BertConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1,
                           num_attention_heads=2, max_position_embeddings=12)  # fmt: skip
    return hf.BertForMaskedLM(config)


def roberta() -> nn.Module:
    config = hf.RobertaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1,
                              num_attention_heads=2, max_position_embeddings=14)  # fmt: skip
    return hf.RobertaForMaskedLM(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    "llama": (llama, "model.embed_tokens", "lm_head"),
    "gpt2": (gpt2, "transformer.wte", "lm_head"),
    "bert": (bert, "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    "roberta": (roberta, "roberta.embeddings.word_embeddings", "lm_head.decoder"),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    model = build().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def factors(*names: str, same: bool = False) -> dict[str, Tensor]:
    made = {}
    for position, name in enumerate(names):
        rng = torch.Generator().manual_seed(0 if same else position)
        made[f"{name}.lora_up.weight"] = torch.randn(VOCABULARY, 2, generator=rng, dtype=torch.float64)
        made[f"{name}.lora_down.weight"] = torch.randn(2, WIDTH, generator=rng, dtype=torch.float64)
        made[f"{name}.alpha"] = torch.tensor(3.0)
    return made


def reference(model: nn.Module, tensors: dict[str, Tensor], head: str) -> nn.Module:
    """The closed formula on a model whose head is apart."""
    found = copy.deepcopy(model)
    owner = found.get_submodule(head)
    owner.weight = nn.Parameter(owner.weight.detach().clone())
    for key in tensors:
        if key.endswith(".lora_up.weight"):
            name = key.removesuffix(".lora_up.weight")
            with torch.no_grad():
                change = tensors[key] @ tensors[f"{name}.lora_down.weight"] * (3.0 / 2 * STRENGTH)
                found.get_submodule(name).weight += change
    return found


def saved(model: nn.Module, folder: Path, **options: Any) -> Path:
    model.save_pretrained(folder, **options)
    return folder


def logits(model: nn.Module) -> Tensor:
    ids = torch.randint(0, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(input_ids=ids).logits


def again(kind: nn.Module, folder: Path) -> nn.Module:
    return type(kind).from_pretrained(folder, dtype=torch.float64).eval()


@pytest.mark.parametrize("which", ["embedding", "head", "both"])
@pytest.mark.parametrize("name", MODELS)
def test_a_folded_folder_computes_what_was_trained(name: str, which: str, tmp_path: Path) -> None:
    build, embedding, head = MODELS[name]
    model = built(build)
    tensors = factors(*{"embedding": (embedding,), "head": (head,), "both": (embedding, head)}[which])
    base = saved(model, tmp_path / "base", max_shard_size="4KB" if which == "both" else "1GB")
    report = lyc_fx.fold_checkpoint(base, lyc_fx.load(tensors), tmp_path / "out", STRENGTH)
    wanted = logits(reference(model, tensors, head))
    got = logits(again(model, tmp_path / "out"))
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    assert (got - logits(model)).abs().max() > 0.1
    assert any("they are now stored separately" in note for note in report.notes)
    live = copy.deepcopy(model)
    lyc_fx.merge(live, lyc_fx.load(tensors), STRENGTH)
    torch.testing.assert_close(logits(live), wanted, rtol=1e-12, atol=1e-12)


def test_what_changes_alike_stays_tied(tmp_path: Path) -> None:
    model = built(llama)
    both = lyc_fx.load(factors("model.embed_tokens", "lm_head", same=True))
    report = lyc_fx.fold_checkpoint(saved(model, tmp_path / "base"), both, tmp_path / "out", STRENGTH)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True
    assert not report.notes and report.changes["lm_head.weight"] == report.changes["model.embed_tokens.weight"] > 0


def test_a_base_that_is_not_tied_or_has_no_head_is_left_alone(tmp_path: Path) -> None:
    adapters = lyc_fx.load(factors("model.embed_tokens"))
    apart = built(lambda: hf.LlamaForCausalLM(hf.LlamaConfig(
        hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, **SIZES)))  # fmt: skip
    lyc_fx.fold_checkpoint(saved(apart, tmp_path / "apart"), adapters, tmp_path / "out", STRENGTH)
    before, after = (load_file(tmp_path / f / "model.safetensors") for f in ("apart", "out"))
    assert torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert (tmp_path / "out" / "config.json").read_bytes() == (tmp_path / "apart" / "config.json").read_bytes()
    bare = built(lambda: llama().model)
    saved(bare, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    named = lyc_fx.load(factors("embed_tokens"))
    lyc_fx.fold_checkpoint(tmp_path / "bare", named, tmp_path / "bare-out", STRENGTH)
    assert "lm_head.weight" not in load_file(tmp_path / "bare-out" / "model.safetensors")


def test_a_folder_of_an_older_version_does_not_say_that_it_ties(tmp_path: Path) -> None:
    """It leaves out what is the class's default."""
    model = built(gpt2)
    base = saved(model, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    del config["tie_word_embeddings"]
    (base / "config.json").write_text(json.dumps(config))
    tensors = factors("lm_head")
    lyc_fx.fold_checkpoint(base, lyc_fx.load(tensors), tmp_path / "out", STRENGTH)
    wanted = logits(reference(model, tensors, "lm_head"))
    torch.testing.assert_close(logits(again(model, tmp_path / "out")), wanted, rtol=1e-12, atol=1e-12)


def test_the_index_knows_the_new_tensor(tmp_path: Path) -> None:
    base = saved(built(llama), tmp_path / "base", max_shard_size="4KB")
    lyc_fx.fold_checkpoint(base, lyc_fx.load(factors("lm_head")), tmp_path / "out", STRENGTH)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = 0
    for name, shard in index["weight_map"].items():
        with safe_open(tmp_path / "out" / shard, "pt") as file:
            tensor = file.get_tensor(name)
            sizes += tensor.numel() * tensor.element_size()
    assert "lm_head.weight" in index["weight_map"] and index["metadata"]["total_size"] == sizes


def test_where_it_cannot_be_right_it_is_refused(tmp_path: Path) -> None:
    config = hf.T5Config(vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2,
                         decoder_start_token_id=0)  # fmt: skip
    base = saved(built(lambda: hf.T5ForConditionalGeneration(config)), tmp_path / "t5")
    with pytest.raises(Unsupported, match="its code depends on whether they are tied"):
        lyc_fx.fold_checkpoint(base, lyc_fx.load(factors("shared")), tmp_path / "out", STRENGTH)
    base = saved(built(llama), tmp_path / "base") / "model.safetensors"
    with pytest.raises(Unsupported, match="fold the folder"):
        lyc_fx.fold_checkpoint(base, lyc_fx.load(factors("model.embed_tokens")), tmp_path / "o.safetensors", STRENGTH)
    alone = tmp_path / "alone.safetensors"
    save_file(load_file(base), alone)
    with pytest.raises(BadAdapter, match="lm_head: no such weight"):
        lyc_fx.fold_checkpoint(alone, lyc_fx.load(factors("lm_head")), tmp_path / "o.safetensors", STRENGTH)
    assert not list(tmp_path.glob("o*"))


def test_folds_are_remembered_one_after_another(tmp_path: Path) -> None:
    base = tmp_path / "base.safetensors"
    save_file({"fc.weight": torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)}, base, {"format": "pt"})
    first, second = lyc_fx.load(factors("fc")), lyc_fx.load(factors("no", "fc")).select("fc")
    for number, adapters in enumerate((first, second, first)):
        out = tmp_path / f"{number}.safetensors"
        report = lyc_fx.fold_checkpoint(base, adapters, out, 0.1 * (number + 1))
        with safe_open(out, "pt") as file:
            entries = json.loads(file.metadata()["lyc_fx.fold"])
        assert [entry["adapters"][0]["strength"] for entry in entries] == [0.1 * (n + 1) for n in range(number + 1)]
        twice = [note for note in report.notes if "was already folded into this base" in note]
        assert len(twice) == (number == 2)
        base = out


def test_the_entry_of_version_0_1_0_is_kept(tmp_path: Path) -> None:
    entry = {"adapters": [{"file": "a.safetensors", "sha256": "0" * 64, "strength": 1.0}], "version": "0.1.0"}
    weights = {"fc.weight": torch.randn(VOCABULARY, WIDTH)}
    save_file(weights, tmp_path / "b.safetensors", {"lyc_fx.fold": json.dumps(entry)})
    lyc_fx.fold_checkpoint(tmp_path / "b.safetensors", lyc_fx.load(factors("fc")), tmp_path / "o.safetensors")
    with safe_open(tmp_path / "o.safetensors", "pt") as file:
        assert json.loads(file.metadata()["lyc_fx.fold"])[0] == entry
