"""Prefixes: which component of a pipeline, or of a checkpoint, a file's name is for; text encoders of both kinds."""

import pytest
import torch
from torch import nn

from lyc_fx.naming import Names, Piece, flatten

pytestmark = pytest.mark.filterwarnings("ignore")
Q = "encoder.layers.0.self_attn.q_proj"


def text_encoder(width: int, projected: bool = False) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPTextConfig(
        hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=2, vocab_size=50,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return (transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel)(config)


def shapes(**models: nn.Module) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{key}": tuple(p.shape) for name, m in models.items() for key, p in m.state_dict().items()}


def found(names: Names, module: str) -> list[str]:
    return ["+".join(p.parameter for p in pieces) for pieces in names.find(module, "weight")]


def test_text_encoders_of_one_pipeline_are_told_apart() -> None:
    names = Names(shapes(text_encoder=text_encoder(8), text_encoder_2=text_encoder(16, projected=True)))
    first = [name for name in names._known if name.startswith("text_encoder.") and Q in name]
    second = [name for name in names._known if name.startswith("text_encoder_2.") and Q in name]
    for prefix in ("lora_te1_", "lora_te_"):
        assert found(names, f"{prefix}text_model_{flatten(Q)}") == [n for n in first if n.endswith("weight")]
    assert found(names, f"lora_te2_text_model_{flatten(Q)}") == [n for n in second if n.endswith("weight")]
    assert found(names, f"text_encoder_2.text_model.{Q}") == [n for n in second if n.endswith("weight")]
    assert found(names, f"text_encoders.clip_l.transformer.text_model.{Q}") == found(names, f"text_encoder.{Q}")
    assert len(found(names, f"lycoris_text_model_{flatten(Q)}")) == 2, "without a role it may be either"
    assert found(names, f"lora_unet_text_model_{flatten(Q)}") == []


@pytest.mark.parametrize("projected", [False, True])
def test_text_model_may_stand_before_a_name_or_not(projected: bool) -> None:
    """transformers 5 has dropped it from `CLIPTextModel`; adapters were trained with it."""
    model = text_encoder(8, projected)
    names = Names({key: tuple(p.shape) for key, p in model.state_dict().items()})
    for name in (f"lora_te_text_model_{flatten(Q)}", f"text_encoder.text_model.{Q}", f"lora_te1_{flatten(Q)}"):
        assert len(found(names, name)) == 1, name
    assert len(found(names, "lora_te_text_model_final_layer_norm")) == 1


def test_an_sdxl_checkpoint_in_one_file() -> None:
    """OpenCLIP's fused projection in the second text encoder, CLIP-L under transformers' names in the first."""
    block = "conditioner.embedders.1.model.transformer.resblocks.0"
    names = Names(
        {
            "model.diffusion_model.input_blocks.1.0.in_layers.2.weight": (4, 4, 3, 3),
            "model.diffusion_model.output_blocks.0.0.in_layers.2.weight": (4, 8, 3, 3),
            f"conditioner.embedders.0.transformer.text_model.{Q}.weight": (8, 8),
            f"{block}.attn.in_proj_weight": (48, 16),
            f"{block}.attn.in_proj_bias": (48,),
            f"{block}.attn.out_proj.weight": (16, 16),
            f"{block}.mlp.c_fc.weight": (32, 16),
            "conditioner.embedders.1.model.ln_final.weight": (16,),
        }
    )
    head = "lora_te2_text_model_encoder_layers_0"
    assert names.find(f"{head}_self_attn_k_proj", "weight") == [(Piece(f"{block}.attn.in_proj_weight", (16, 32)),)]
    assert names.find(f"{head}_self_attn_v_proj", "bias") == [(Piece(f"{block}.attn.in_proj_bias", (32, 48)),)]
    assert found(names, f"{head}_mlp_fc1") == [f"{block}.mlp.c_fc.weight"]
    assert found(names, f"lora_te1_text_model_{flatten(Q)}") == [
        f"conditioner.embedders.0.transformer.text_model.{Q}.weight"
    ]
    assert (
        found(names, "lora_unet_down_blocks_0_resnets_0_conv1")
        == found(names, "lora_unet_input_blocks_1_0_in_layers_2")
        == ["model.diffusion_model.input_blocks.1.0.in_layers.2.weight"]
    )


def test_openclip_names_agree_with_diffusers_converter() -> None:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    model = text_encoder(16, projected=True)
    block = "cond_stage_model.model.transformer.resblocks.0"
    own = {
        f"{block}.attn.in_proj_weight": torch.randn(48, 16),
        f"{block}.attn.in_proj_bias": torch.randn(48),
        f"{block}.attn.out_proj.weight": torch.randn(16, 16),
        f"{block}.ln_1.weight": torch.randn(16),
        f"{block}.ln_2.bias": torch.randn(16),
        f"{block}.mlp.c_fc.weight": torch.randn(32, 16),
        f"{block}.mlp.c_proj.bias": torch.randn(16),
        "cond_stage_model.model.ln_final.weight": torch.randn(16),
    }
    theirs = convert_open_clip_checkpoint(model, dict(own))
    names = Names({name: tuple(value.shape) for name, value in own.items()})
    assert len(theirs) == len(own) + 4
    for name, value in theirs.items():
        module, _, leaf = name.rpartition(".")
        [(piece,)] = names.find(f"lora_te_{flatten(module)}", leaf)
        taken = own[piece.parameter]
        assert torch.equal(taken if piece.rows is None else taken[slice(*piece.rows)], value), name


def test_onetrainer_and_wan_fun_prefixes() -> None:
    names = Names({"transformer_blocks.0.attn.to_q.weight": (4, 4), "blocks.0.self_attn.q.weight": (4, 4)})
    assert found(names, "lora_transformer_transformer_blocks_0_attn_to_q") == ["transformer_blocks.0.attn.to_q.weight"]
    assert found(names, "lora_unet__blocks_0_self_attn_q") == ["blocks.0.self_attn.q.weight"]
