"""XLabs' LoRA for Flux: `double_blocks.<n>.processor.qkv_lora1.down.weight` and so on, without alpha (scale 1).

| key, after `<kind>_blocks.<n>.processor.` | module |
|---|---|
| `qkv_lora1`, `proj_lora1` of a double block | the image's `img_attn.qkv`, `img_attn.proj` |
| `qkv_lora2`, `proj_lora2` of a double block | the text's `txt_attn.qkv`, `txt_attn.proj` |
| `qkv_lora` of a single block | q, k and v within `linear1` |
| `proj_lora` of a single block | `linear2` |
"""

import re
from typing import final

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import Unsupported
from lyc_fx.formats.format import Contents, Format, Source

_KEY = re.compile(
    r"(?:diffusion_model\.)?(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(down|up)\.weight"
)
_MODULES = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "qkv", ""): "qkv",
    ("single", "proj", ""): "linear2",
}


@final
class XLabs(Format):
    """Keys as XLabs' trainer writes them."""

    name = "xlabs"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        match = _KEY.fullmatch(key)
        module = _MODULES.get((match[1], match[3], match[4])) if match else None
        return (f"{match[1]}_blocks.{match[2]}.{module}", f"lora_{match[5]}.weight") if match and module else None

    def write(self, adapters: AdapterSet) -> Contents:
        raise Unsupported("XLabs' keys are read, not written: choose kohya or diffusers")
