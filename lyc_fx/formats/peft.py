"""PEFT adapters: `base_model.model.<module>.<factor>`, with alpha in `adapter_config.json` beside the tensors.

LORA (with DoRA, rslora, rank and alpha patterns, `lora_B.bias`, embeddings), LOHA, LOKR, and IA3 of feedforward
layers. What is on PEFT's
list of known mistakes is read by the closed formula: LoKr with both factors full has scale 1.
"""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter, Unsupported
from lyc_fx.formats.format import Contents, Format, Source
from lyc_fx.formats.layouts import alpha_of, computable, lycoris_layouts, rank_of
from lyc_fx.formats.patterns import matches
from lyc_fx.formats.texts import shown

PREFIX = "base_model.model."
_FACTORS = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    "lora_B.bias": "diff_b",
    "lora_embedding_A": "lora_embedding_A",
    "lora_embedding_B": "lora_embedding_B",
    "lora_magnitude_vector": "dora_scale",
    "ia3_l": "ia3_l",
    **{f"hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}


@final
class Peft(Format):
    """Keys as PEFT's `save_pretrained` and `get_peft_model_state_dict` write them."""

    name = "peft"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        if not key.startswith(PREFIX):
            return None
        path = key.removeprefix(PREFIX).replace(".default.", ".").replace(".base_layer.", ".").removesuffix(".default")
        for factor, suffix in _FACTORS.items():
            if path.endswith(f".{factor}") or path.endswith(f".{factor}.weight"):
                return path[: path.rindex(f".{factor}")], suffix
        return None

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        config, full = source.config, dict(group)
        if config is None:
            raise BadAdapter("PEFT keeps alpha in adapter_config.json: load the directory that holds both files")
        if "ia3_l" in full:
            return _ia3(module, full.pop("ia3_l"), config)
        if "lora_embedding_A" in full:  # the weight of an embedding is (tokens, channels): ΔW = (B @ A)ᵀ
            full["lora_up.weight"] = _turned(full, "lora_embedding_A")
            full["lora_down.weight"] = _turned(full, "lora_embedding_B")
        inner = next((full[n] for n in ("lora_down.weight", "hada_w1_b", "lokr_w1_b", "lokr_w2_b") if n in full), None)
        if inner is not None:
            full["alpha"] = torch.tensor(alpha_of(module, config, rank_of(inner)))
        return lycoris_layouts(full)

    def write(self, adapters: AdapterSet) -> Contents:
        raise Unsupported("lyc-fx reads PEFT adapters; it does not write them yet")


def _turned(group: dict[str, Tensor], name: str) -> Tensor:
    factor = group.pop(name, None)
    if factor is None or factor.dim() != 2:
        raise BadAdapter(f"{name} is {'missing' if factor is None else f'{tuple(factor.shape)}, not a matrix'}")
    return factor.t()


def _ia3(module: str, scale: Tensor, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """`W · l` as `W · (1 + w)` on the input side, which feedforward modules have."""
    listed = config.get("feedforward_modules") or ()
    if isinstance(listed, str):
        feedforward = matches(listed, module)
    elif not isinstance(listed, (list, tuple, set, frozenset)):
        raise BadAdapter(f"feedforward_modules is {shown(listed)}, which is no list")
    else:
        feedforward = any(module == name or module.endswith(f".{name}") for name in listed)
    if not feedforward:
        raise BadAdapter("PEFT's IA3 on the output side scales the bias as well, which lyc-fx does not do yet")
    return {"weight": computable(scale, "ia3_l").flatten() - 1, "on_input": torch.tensor(1)}
