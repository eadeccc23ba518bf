"""Bases that a quantizer has packed: each is named, with what to do, and nothing is written."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.base.packed import method_in, quantizer_of
from lyc_fx.errors import BadFile, LycFxError, Unsupported

OUT, IN, GROUP = 48, 32, 16
"""A linear layer's weight is (48, 32), with a scale for each 16 inputs"""


def ints(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.ones(shape, dtype=dtype)


def halves(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.float16)


F8 = torch.ones(OUT, IN).to(torch.float8_e4m3fn)
GPTQ = {
    "fc.qweight": ints(IN // 8, OUT),
    "fc.qzeros": ints(IN // GROUP, OUT // 8),
    "fc.scales": halves(IN // GROUP, OUT),
}
AWQ = {
    "fc.qweight": ints(IN, OUT // 8),
    "fc.qzeros": ints(IN // GROUP, OUT // 8),
    "fc.scales": halves(IN // GROUP, OUT),
}
NF4 = {
    "fc.weight": ints(OUT * IN // 2, 1, dtype=torch.uint8),
    "fc.weight.absmax": ints(OUT * IN // 64, dtype=torch.uint8),
    "fc.weight.quant_map": torch.ones(16),
    "fc.weight.nested_absmax": torch.ones(1),
    "fc.weight.nested_quant_map": torch.ones(256),
    "fc.weight.quant_state.bitsandbytes__nf4": ints(90, dtype=torch.uint8),
}
INT8 = {"fc.weight": ints(OUT, IN, dtype=torch.int8)}
PACKED: dict[str, tuple[dict[str, Tensor], str]] = {
    "gptq": (GPTQ | {"fc.g_idx": ints(IN)}, r"GPTQ \(fc\.qweight\)"),
    "gptq without g_idx": (GPTQ, r"GPTQ \(fc\.qweight\)"),
    "awq": (AWQ, r"AWQ \(fc\.qweight\)"),
    "nf4": (NF4, r"bitsandbytes \(nf4\) \(fc\.weight\.absmax\)"),
    "int8": (INT8 | {"fc.SCB": torch.ones(OUT)}, r"bitsandbytes \(fc\.SCB\)"),
    "mxfp4": (
        {
            "fc_blocks": ints(2, OUT, IN // 32, 16, dtype=torch.uint8),
            "fc_scales": ints(2, OUT, IN // 32, dtype=torch.uint8),
        },
        r"MXFP4 \(fc_blocks\)",
    ),
    "compressed, packed": (
        {
            "fc.weight_packed": ints(OUT, IN // 8),
            "fc.weight_scale": halves(OUT, IN // GROUP),
            "fc.weight_shape": torch.tensor([OUT, IN]),
        },
        r"compressed-tensors \(fc\.weight_packed\)",
    ),
    "compressed, nvfp4": (
        {
            "fc.weight_packed": ints(OUT, IN // 2, dtype=torch.uint8),
            "fc.weight_scale": torch.ones(OUT, IN // 16).to(torch.float8_e4m3fn),
            "fc.weight_global_scale": torch.ones(1),
        },
        r"compressed-tensors \(NVFP4\) \(fc\.weight_packed\)",
    ),
    "compressed, int8": (INT8 | {"fc.weight_scale": halves(OUT, 1)}, r"compressed-tensors \(fc\.weight_scale\)"),
    "compressed, float8": (
        {"fc.weight": F8, "fc.weight_scale": torch.ones(OUT, 1).bfloat16()},
        r"compressed-tensors \(fc\.weight_scale\)",
    ),
    "fp8-block": ({"fc.weight": F8, "fc.weight_scale_inv": torch.ones(1, 1)}, r"fp8-block \(fc\.weight_scale_inv\)"),
}


def adapters() -> AdapterSet:
    return lyc_fx.load({"lycoris_fc.lora_up.weight": torch.ones(OUT, 2), "lycoris_fc.lora_down.weight": halves(2, IN)})


@pytest.mark.parametrize("name", PACKED)
def test_a_file_is_named_by_its_keys(name: str, tmp_path: Path) -> None:
    tensors, said = PACKED[name]
    save_file(tensors | {"norm.weight": torch.ones(IN)}, tmp_path / "base.safetensors")
    with pytest.raises(
        Unsupported, match=rf"base\.safetensors: is quantized by {said}.*from before quantization.*beside the model"
    ):
        lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", adapters(), tmp_path / "out.safetensors", 0.7)
    assert [path.name for path in tmp_path.iterdir()] == ["base.safetensors"]


def test_gguf_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model-Q4_0.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(16))
    (folder / "config.json").write_text("{}")
    for base in (folder, folder / "model-Q4_0.gguf"):
        with pytest.raises(BadFile, match=r"Q4_0\.gguf: is a GGUF file.*fold into the safetensors model"):
            lyc_fx.fold_checkpoint(base, adapters(), tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        ({"quant_method": "gptq", "bits": 4}, "GPTQ"),
        ({"quant_method": "awq", "bits": 4}, "AWQ"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes (nf4)"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "bnb_4bit_quant_type": "fp4"}, "bitsandbytes"),
        ({"quant_method": "mxfp4"}, "MXFP4"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8-block"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, "compressed-tensors (pack-quantized)"),
        ({"quant_method": "quark"}, "quark"),
        ({"bits": 4}, None),
        ("gptq", None),
    ],
)
def test_a_configuration_knows_the_name(config: Any, name: str | None, tmp_path: Path) -> None:
    assert method_in({"quantization_config": config}) == name
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    save_file(GPTQ, folder / "model.safetensors")
    for base in (folder, folder / "model.safetensors"):
        with pytest.raises(Unsupported) as error:
            lyc_fx.fold_checkpoint(base, adapters(), tmp_path / "out")
        assert f"is quantized by {name or 'GPTQ'} (fc.qweight), so" in str(error.value)


def test_what_is_not_quantized_is_not_taken_for_it(tmp_path: Path) -> None:
    plain = {"fc.weight": torch.ones(OUT, IN), "fc.scales": torch.ones(3), "fc.qweight": ints(2, 2)}
    scaled = {"fc.weight": F8, "fc.weight_scale": torch.ones(OUT, 1)}
    assert quantizer_of(plain) is None and quantizer_of(scaled) is None
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq"}}))  # dequantized
    save_file({"other.weight": torch.ones(3, 3)}, folder / "model.safetensors")
    with pytest.raises(LycFxError) as error:
        lyc_fx.fold_checkpoint(folder, adapters(), tmp_path / "out")
    assert "quantized" not in str(error.value)


class Packed(nn.Module):
    """What GPTQModel and AutoAWQ put in the place of a linear layer."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name.removeprefix("fc."), tensor)


@pytest.mark.parametrize("name", ["gptq", "awq", "compressed, packed"])
def test_a_model_in_memory_is_named(name: str) -> None:
    tensors, said = PACKED[name]
    model = nn.ModuleDict({"fc": Packed(tensors), "norm": nn.LayerNorm(3)})
    for verb in (lyc_fx.merge, lambda model, given: lyc_fx.live(model).set(given)):
        with pytest.raises(Unsupported, match=rf"(?s)quantized by {said}.*before quantization.*no such weight"):
            verb(model, adapters())
