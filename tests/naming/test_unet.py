"""Names of UNets as SDXL adapters have them: diffusers' own converter is the oracle."""

import pytest
import torch

from lyc_fx.naming import Names, Piece, flatten
from lyc_fx.naming.unet import BlockNames, LdmNames

diffusers = pytest.importorskip("diffusers")


def unet(sdxl: bool):  # type: ignore[no-untyped-def]
    """A UNet with SDXL's (or SD1.5's) blocks, on no device."""
    sizes = {"sample_size": 8, "norm_num_groups": 2, "attention_head_dim": 2, "cross_attention_dim": 4}
    if sdxl:
        sizes |= {
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            "block_out_channels": (4, 8, 16),
            "transformer_layers_per_block": (1, 2, 3),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 2,
            "projection_class_embeddings_input_dim": 16,
        }
    else:
        sizes |= {"block_out_channels": (4, 8, 16, 16)}
    with torch.device("meta"):
        return diffusers.UNet2DConditionModel(**sizes)


@pytest.mark.parametrize("sdxl", [True, False])
def test_every_parameter_is_found_by_its_original_name(sdxl: bool) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    model = unet(sdxl)
    ours = LdmNames.of(dict(model.named_parameters()))
    assert ours is not None
    original = {}
    for name, parameter in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        renamed = ours.path(path)
        assert renamed is not None, name
        original[f"model.diffusion_model.{renamed}.{leaf}"] = parameter
    assert len(original) == len(dict(model.named_parameters()))
    theirs = convert_ldm_unet_checkpoint(original, dict(model.config))
    assert {n: id(p) for n, p in theirs.items()} == {n: id(p) for n, p in model.named_parameters()}

    shapes = {name.removeprefix("model.diffusion_model."): tuple(p.shape) for name, p in original.items()}
    back = BlockNames.of(shapes)
    assert back is not None
    for name in shapes:
        path, _, leaf = name.rpartition(".")
        assert f"{back.path(path)}.{leaf}" in theirs, name
        assert theirs[f"{back.path(path)}.{leaf}"] is original[f"model.diffusion_model.{name}"]

    names = Names({n: tuple(p.shape) for n, p in model.named_parameters()})
    for name, _ in model.named_parameters():
        path, _, leaf = name.rpartition(".")
        for known in (path, ours.path(path)):
            assert names.find(f"lora_unet_{flatten(str(known))}", leaf) == [(Piece(name),)]


def test_another_model_has_no_original_names() -> None:
    assert LdmNames.of(["down_blocks.0.weight", "fc.weight"]) is None
    assert Names({"fc.weight": (3, 2)}).find("lora_unet_input_blocks_0_0", "weight") == []
