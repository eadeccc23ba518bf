"""LoRA files of every trainer, against the converters of diffusers: the same change of the same module."""

import re
from collections.abc import Callable, Iterable

import pytest
import torch
from conversions import unet
from torch import Tensor, nn

import lyc_fx
from lyc_fx.algebra.tensors import matrix
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.naming import Dialect, Names

pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

from diffusers.loaders import lora_conversion_utils as converters  # noqa: E402

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


def meta(build: Callable[[], nn.Module]) -> Shapes:
    """Names and shapes of a model of real width; no memory."""
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in build().state_dict().items()}


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)


def wan() -> nn.Module:
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(num_attention_heads=2, attention_head_dim=24, ffn_dim=80, text_dim=40, num_layers=2)


def qwen() -> nn.Module:
    from diffusers import QwenImageTransformer2DModel

    return QwenImageTransformer2DModel(
        num_layers=2, attention_head_dim=16, num_attention_heads=3, joint_attention_dim=40, axes_dims_rope=(4, 6, 6)
    )


def original(shapes: Shapes) -> Shapes:
    """The modules of the original, by shape, whose weights a model's parameters are."""
    names = [n for n in Names(shapes).all if n.dialect is Dialect.original and n.leaf == "weight"]
    return {
        n.path: (sum(shapes[p.parameter][0] if p.rows is None else p.rows[1] - p.rows[0] for p in n.pieces),
                 *shapes[n.pieces[0].parameter][1:])
        for n in names
    }  # fmt: skip


def linears(shapes: Shapes) -> Shapes:
    return {name.removesuffix(".weight"): s for name, s in shapes.items() if name.endswith(".weight") and len(s) == 2}


def lora(
    modules: Shapes, key: str, *, alpha: float | None = 3.0, down: str = "lora_down", up: str = "lora_up"
) -> Tensors:
    """A LoRA of rank 2 for each module; `key` makes its name in the file."""
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for path, shape in modules.items():
        name = key.format(path=path, flat=path.replace(".", "_"))
        tensors[f"{name}.{down}.weight"] = torch.randn(2, shape[1], *shape[2:], generator=generator)
        tensors[f"{name}.{up}.weight"] = torch.randn(shape[0], 2, *(1 for _ in shape[2:]), generator=generator)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    return tensors


def copied(tensors: Tensors) -> Tensors:
    """Some converters scale in place."""
    return {key: value.clone() for key, value in tensors.items()}


def applied(up: Tensor, down: Tensor) -> Tensor:
    """`ΔW x` for an x: the factors may be scaled, and split between each other, in any way."""
    up, down = matrix(up).double(), matrix(down).double()
    return up @ (down @ torch.linspace(-1, 1, down.shape[1], dtype=torch.float64))


def same(theirs: Tensors, ours: Tensors, shapes: Shapes, dropped: Iterable[str] = ()) -> None:
    """Every module that diffusers has found has the same change here; those that it drops are changed here too."""
    converted = lyc_fx.load(lyc_fx.convert(lyc_fx.load(ours), "diffusers", like=shapes).contents.tensors)
    read = {entry.module.partition(".")[2]: entry.adapter for entry in converted.entries}
    modules = {key.removesuffix(".lora_A.weight") for key in theirs if key.endswith(".lora_A.weight")}
    assert modules
    strip = {m: m.removeprefix("transformer.").removeprefix("unet.") for m in modules}
    assert set(strip.values()) | set(dropped) == set(read)
    for module, name in strip.items():
        adapter = read[name]
        assert isinstance(adapter, LoCon)
        wanted = applied(theirs[f"{module}.lora_B.weight"], theirs[f"{module}.lora_A.weight"])
        error = (applied(adapter.up * adapter.scale, adapter.down) - wanted).norm()
        assert error <= 1e-6 * wanted.norm(), name


def test_kohya_s_flux() -> None:
    shapes = meta(flux)
    tensors = lora(original(shapes), "lora_unet_{flat}")
    theirs = converters._convert_kohya_flux_lora_to_diffusers(copied(tensors))
    # The converter forgets alpha of the last layer; where alpha is the rank it makes no difference.
    last = {key: torch.tensor(2.0) for key in tensors if "final_layer" in key and key.endswith("alpha")}
    same(theirs, tensors | last, shapes)


def test_comfyui_s_flux() -> None:
    shapes = meta(flux)
    modules = {path: s for path, s in original(shapes).items() if "blocks" in path}
    tensors = lora(modules, "diffusion_model.{path}")
    same(converters._convert_kohya_flux_lora_to_diffusers(copied(tensors)), tensors, shapes)


def test_onetrainer_s_flux() -> None:
    shapes = meta(flux)
    attention = {p: s for p, s in linears(shapes).items() if ".attn." in p and "norm" not in p}
    tensors = lora(attention, "lora_transformer_{flat}")
    same(converters._convert_kohya_flux_lora_to_diffusers(copied(tensors)), tensors, shapes)


def test_xlabs_flux() -> None:
    shapes = meta(flux)
    qkv, proj, single = (9216, 3072), (3072, 3072), (3072, 15360)
    modules = {
        "double_blocks.0.processor.qkv_lora1": qkv,
        "double_blocks.0.processor.proj_lora1": proj,
        "double_blocks.0.processor.qkv_lora2": qkv,
        "double_blocks.0.processor.proj_lora2": proj,
        "single_blocks.0.processor.qkv_lora": qkv,
        "single_blocks.0.processor.proj_lora": single,
    }
    tensors = lora(modules, "{path}", alpha=None, down="down", up="up")
    same(converters._convert_xlabs_flux_lora_to_diffusers(copied(tensors)), tensors, shapes)


@pytest.mark.parametrize("spelling", ["diffusion_model.{path}", "lora_unet_{flat}"])
def test_wan(spelling: str) -> None:
    shapes = meta(wan)
    modules = {path: s for path, s in original(shapes).items() if len(s) == 2 and path.startswith("blocks.")}
    tensors = lora(modules, spelling)
    convert = (
        converters._convert_musubi_wan_lora_to_diffusers
        if "flat" in spelling
        else converters._convert_non_diffusers_wan_lora_to_diffusers
    )
    same(convert(copied(tensors)), tensors, shapes)


@pytest.mark.parametrize("spelling", ["diffusion_model.{path}", "lora_unet_{flat}"])
def test_qwen_image(spelling: str) -> None:
    shapes = meta(qwen)
    modules = {path: s for path, s in linears(shapes).items() if path.startswith("transformer_blocks.")}
    tensors = lora(modules, spelling)
    same(converters._convert_non_diffusers_qwen_lora_to_diffusers(copied(tensors)), tensors, shapes)


@pytest.mark.parametrize("sdxl", [False, True])
def test_kohya_s_stable_diffusion(sdxl: bool) -> None:
    torch.manual_seed(0)
    model = unet(sdxl)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    own = linears(shapes) | {
        name.removesuffix(".weight"): s for name, s in shapes.items() if name.endswith(".weight") and len(s) == 4
    }
    attention = {p: s for p, s in own.items() if "attentions" in p and "norm" not in p}
    tensors = lora(attention, "lora_unet_{flat}", alpha=2.0)  # the rank: diffusers returns alphas apart
    given = copied(tensors)
    if sdxl:
        names = {n.pieces[0].parameter: n.path for n in Names(shapes).all if n.dialect is Dialect.original}
        tensors = lora({names[f"{p}.weight"]: s for p, s in attention.items()}, "lora_unet_{flat}", alpha=2.0)
        given = converters._maybe_map_sgm_blocks_to_diffusers(copied(tensors), model.config)
    theirs, _ = converters._convert_non_diffusers_lora_to_diffusers(given)
    peft = {}
    for key, value in theirs.items():
        module, factor = re.fullmatch(r"(.*)[._]lora\.(down|up)\.weight", key).groups()  # type: ignore[union-attr]
        module = re.sub(r"\.to_out$", ".to_out.0", module.replace(".processor", ""))
        peft[f"{module}.lora_{'A' if factor == 'down' else 'B'}.weight"] = value
    same(peft, tensors, shapes)
