"""Small models of transformers, of the real classes, as the library builds them: with caches and output classes."""

from typing import Any

import torch
import transformers as hf

from tests.zoo.case import Case

_BATCH, _LENGTH, _SIDE = (2, 3), (5, 7), (32, 48)
_VOCAB = 50


def _ids(size: int) -> torch.Tensor:
    return torch.randint(3, _VOCAB, (_BATCH[size], _LENGTH[size]))


def _text(size: int) -> dict[str, Any]:
    return {"input_ids": _ids(size)}


def _masked(size: int) -> dict[str, Any]:
    mask = torch.ones(_BATCH[size], _LENGTH[size], dtype=torch.long)
    mask[0, -2:] = 0
    return {"input_ids": _ids(size), "attention_mask": mask}


def _image(size: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(_BATCH[size], 3, _SIDE[size], _SIDE[1 - size])}


def _square(size: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(_BATCH[size], 3, 32, 32)}


def _llama() -> hf.PreTrainedModel:
    return hf.LlamaForCausalLM(
        hf.LlamaConfig(
            vocab_size=_VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
        )
    )


def _qwen3() -> hf.PreTrainedModel:
    return hf.Qwen3ForCausalLM(
        hf.Qwen3Config(
            vocab_size=_VOCAB,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            tie_word_embeddings=True,
        )
    )


def _gpt2() -> hf.PreTrainedModel:
    return hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=_VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=2)
    )


def _bert() -> hf.PreTrainedModel:
    return hf.BertForMaskedLM(
        hf.BertConfig(
            vocab_size=_VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
        )
    )


def _clip() -> hf.PreTrainedModel:
    inner = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {**inner, "vocab_size": _VOCAB, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**inner, "image_size": 32, "patch_size": 16}
    return hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24))


def _t5() -> hf.PreTrainedModel:
    return hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=_VOCAB,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=1,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
    )


def _t5_inputs(size: int) -> dict[str, Any]:
    return {**_masked(size), "decoder_input_ids": torch.randint(3, _VOCAB, (_BATCH[size], 4 + size))}


def _vit() -> hf.PreTrainedModel:
    return hf.ViTForImageClassification(
        hf.ViTConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=32,
            patch_size=16,
        )
    )


def _whisper() -> hf.PreTrainedModel:
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            vocab_size=_VOCAB,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=48,
            decoder_ffn_dim=48,
            max_source_positions=20,
            max_target_positions=16,
            num_mel_bins=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
        )
    )


def _whisper_inputs(size: int) -> dict[str, Any]:
    return {
        "input_features": torch.randn(_BATCH[size], 8, 40),
        "decoder_input_ids": torch.randint(3, _VOCAB, (_BATCH[size], 4 + size)),
    }


def _resnet() -> hf.PreTrainedModel:
    return hf.ResNetForImageClassification(
        hf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 2], layer_type="bottleneck")
    )


def _convnext() -> hf.PreTrainedModel:
    return hf.ConvNextForImageClassification(hf.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2))


def _efficientnet() -> hf.PreTrainedModel:
    return hf.EfficientNetForImageClassification(
        hf.EfficientNetConfig(
            image_size=32,
            width_coefficient=0.25,
            hidden_dim=320,
            depth_divisor=4,
            kernel_sizes=[3, 5],
            in_channels=[32, 16],
            out_channels=[16, 24],
            strides=[1, 2],
            num_block_repeats=[1, 2],
            expand_ratios=[1, 4],
            depthwise_padding=[],
        )
    )


CASES = (
    Case("llama", _llama, _text),
    Case("qwen3 tied", _qwen3, _masked),
    Case("gpt2", _gpt2, _text),
    Case("bert", _bert, _masked),
    Case("clip", _clip, lambda size: {**_masked(size), **_square(size)}),
    Case("t5", _t5, _t5_inputs),
    Case("vit", _vit, _square),
    Case("whisper", _whisper, _whisper_inputs),
    Case("resnet", _resnet, _image),
    Case("convnext", _convnext, _image),
    Case("efficientnet", _efficientnet, _image),
)
