"""Every module's other name, against the checkpoint converters of diffusers, at the models' real widths."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lyc_fx.naming import Dialect, Name, Names

pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")

Values = dict[str, Tensor]


def values(shapes: dict[str, tuple[int, ...]]) -> Values:
    """For each parameter a column that tells its rows from all others."""
    return {
        name: torch.arange(shape[0], dtype=torch.float64).reshape(-1, 1) + 1e6 * number
        for number, (name, shape) in enumerate(shapes.items())
        if shape
    }


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def told(names: Names, dialect: Dialect) -> Iterator[Name]:
    return (name for name in names.all if name.dialect is dialect)


def full(name: Name) -> str:
    """The parameter's name."""
    bare = not name.pieces[0].parameter.endswith((".weight", ".bias"))
    return name.path if bare else f"{name.path}.{name.leaf}"


def assembled(name: Name, own: Values) -> Tensor:
    """What a name stands for, from the values of the model's own parameters."""
    rows = [own[p.parameter] if p.rows is None else own[p.parameter][slice(*p.rows)] for p in name.pieces]
    places = [p.source_rows for p in name.pieces]
    if places[0] is None:
        return rows[0]
    assert all(place is not None for place in places)
    order = sorted(range(len(rows)), key=lambda i: places[i])  # type: ignore[arg-type, return-value]
    return torch.cat([rows[i] for i in order])


def both_ways(model: nn.Module, convert: Any, left: dict[str, str]) -> None:
    """Names forward: the original checkpoint, converted by diffusers, is the model; and back: the same names.

    `left` maps the original's parameters that no adapter can have to the model's.
    """
    shapes = shapes_of(model)
    own = values(shapes)
    names = Names(shapes)
    original = {full(n): assembled(n, own) for n in told(names, Dialect.original)}
    original |= {theirs: own[ours] for theirs, ours in left.items()}
    widths = {
        full(n): (original[full(n)].shape[0], *shapes[n.pieces[0].parameter][1:]) for n in told(names, Dialect.original)
    }
    given = dict(original)
    converted = convert(dict(original))
    assert converted.keys() == own.keys()
    for name, value in converted.items():
        assert torch.equal(value, own[name]), name

    back = Names(widths)
    found = {full(n): assembled(n, given) for n in told(back, Dialect.diffusers)}
    assert found.keys() == own.keys() - set(left.values())
    for name, value in found.items():
        assert torch.equal(value, own[name]), name


def test_flux() -> None:
    from diffusers import FluxTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        model = FluxTransformer2DModel(num_layers=2, num_single_layers=2, guidance_embeds=True)
    left = {}
    for i in range(2):
        for theirs, ours in (("query", "q"), ("key", "k")):
            left |= {
                f"double_blocks.{i}.img_attn.norm.{theirs}_norm.scale": (
                    f"transformer_blocks.{i}.attn.norm_{ours}.weight"
                ),
                f"double_blocks.{i}.txt_attn.norm.{theirs}_norm.scale": (
                    f"transformer_blocks.{i}.attn.norm_added_{ours}.weight"
                ),
                f"single_blocks.{i}.norm.{theirs}_norm.scale": f"single_transformer_blocks.{i}.attn.norm_{ours}.weight",
            }
    both_ways(model, convert_flux_transformer_checkpoint_to_diffusers, left)


def test_sd3() -> None:
    from diffusers import SD3Transformer2DModel
    from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers

    with torch.device("meta"):
        model = SD3Transformer2DModel(num_layers=3, dual_attention_layers=(0, 1), qk_norm="rms_norm")
    left = {"pos_embed": "pos_embed.pos_embed"}
    for i in range(3):
        for letter in "qk":
            ours = f"transformer_blocks.{i}"
            left[f"joint_blocks.{i}.x_block.attn.ln_{letter}.weight"] = f"{ours}.attn.norm_{letter}.weight"
            left[f"joint_blocks.{i}.context_block.attn.ln_{letter}.weight"] = f"{ours}.attn.norm_added_{letter}.weight"
            if i < 2:
                left[f"joint_blocks.{i}.x_block.attn2.ln_{letter}.weight"] = f"{ours}.attn2.norm_{letter}.weight"
    both_ways(model, convert_sd3_transformer_checkpoint_to_diffusers, left)


@pytest.mark.parametrize("images", [False, True])
def test_wan(images: bool) -> None:
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    with torch.device("meta"):
        extra = {"image_dim": 48, "added_kv_proj_dim": 256} if images else {}
        model = WanTransformer3DModel(
            num_attention_heads=2, attention_head_dim=128, ffn_dim=300, freq_dim=32, text_dim=64, num_layers=2, **extra
        )
    left = {f"patch_embedding.{leaf}": f"patch_embedding.{leaf}" for leaf in ("weight", "bias")}  # one name in both
    both_ways(model, convert_wan_transformer_to_diffusers, left)
