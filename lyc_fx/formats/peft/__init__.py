"""PEFT adapters: `base_model.model.<module>.<factor>`, with alpha in `adapter_config.json` beside the tensors.

LORA (with DoRA, rslora, rank and alpha patterns, `lora_B.bias`, embeddings, attention, `target_parameters`), ADALORA,
LOHA, LOKR, IA3, OFT, BOFT, HRA and VERA; with any of them whole modules and biases that were trained. What they mean
is what PEFT's forward computes: it scales LoKr by alpha / r also where both factors are full, which LyCORIS does not.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.format import Contents, Format, Source
from lyc_fx.formats.peft import experts, ia3, rotations, vera
from lyc_fx.formats.peft.keys import EMBEDDED, PREFIX, TOKENS, parse
from lyc_fx.formats.peft.methods import refuse_unreadable
from lyc_fx.formats.peft.write import contents
from lyc_fx.formats.reading.layouts import computable, lycoris_layouts, rank_of, with_trained_scale
from lyc_fx.formats.reading.texts import real

__all__ = ["Peft"]


SCALED = frozenset({"lora_down.weight", "hada_w1_a", "lokr_w1", "lokr_w1_a"})
"""Factors of methods of which the scale is all that a configuration has to say"""


@final
class Peft(Format):
    """Keys as PEFT's `save_pretrained` and `get_peft_model_state_dict` write them."""

    name = "peft"

    def parse(self, key: str, source: Source) -> tuple[str, str] | None:
        found = parse(key, source)
        if found is not None and source.config is not None:
            refuse_unreadable(source.name, source.config)
        return found

    def shared(self, key: str) -> str | None:
        return vera.shared(key)

    def complete(self, module: str, group: Mapping[str, Tensor], source: Source) -> dict[str, Tensor]:
        config, full = source.config, dict(group)
        if not vera.VECTORS.isdisjoint(full):
            return vera.read(full, source.shared)
        if config is None and SCALED.isdisjoint(full):
            raise BadAdapter(
                "PEFT keeps what else there is to know in adapter_config.json: load the directory that holds both "
                "files, or name it (config=, --config)"
            )
        if config is None:
            config = {} if source.alpha is None else {"lora_alpha": source.alpha}
        if TOKENS in full:
            raise BadAdapter("trainable tokens are not read: save the embedding as a whole (modules_to_save)")
        if "ia3_l" in full:
            return full | ia3.read(module, full.pop("ia3_l"), config)
        if "boft_R" in full:
            return full
        if "hra_u" in full:
            return full | {"hra_gs": torch.tensor(int(bool(config.get("apply_GS"))))}
        for suffix in rotations.PACKED:
            if suffix in full:
                return full | rotations.read(suffix, full.pop(suffix), config)
        if experts.targeted(module, source):
            return experts.read(module, full, source)
        if EMBEDDED[0] in full:  # the weight of an embedding is (tokens, channels): ΔW = (B @ A)ᵀ
            full["lora_up.weight"], full["lora_down.weight"] = (_turned(full, name) for name in EMBEDDED)
            if "dora_scale" in full:  # one per channel, which is a column
                full["dora_scale"] = full["dora_scale"].reshape(1, -1)
        if "lora_E" in full:
            values = full.pop("lora_E")
            return _pruned(full) if not values.numel() else full | _adalora(full, values, config)
        own = {k: full.pop(k) for k in ("dora_scale",) if f"{PREFIX}{module}.{k}" in source.keys}  # in LyCORIS's layout
        return lycoris_layouts(full if "alpha" in full else with_trained_scale(full, config, module)) | own

    def scale_unknown(self, group: Mapping[str, Tensor], source: Source) -> bool:
        """Whether nothing says the scale of a module's factors."""
        said = source.config is not None or source.alpha is not None or "alpha" in group
        return not said and not SCALED.isdisjoint(group)

    def write(self, adapters: AdapterSet) -> Contents:
        """Raises Unsupported, naming modules, for what one PEFT configuration cannot say."""
        return contents(adapters)


def _turned(group: dict[str, Tensor], name: str) -> Tensor:
    factor = group.pop(name, None)
    if factor is None or factor.dim() != 2:
        raise BadAdapter(f"{name} is {'missing' if factor is None else f'{tuple(factor.shape)}, not a matrix'}")
    return factor.t()


def _adalora(full: Mapping[str, Tensor], values: Tensor, config: Mapping[str, object]) -> dict[str, Tensor]:
    """`ΔW = B · diag(E) · A · alpha / (init_r + 1e-5)`: PEFT divides by the rank that training began with."""
    down = full.get("lora_down.weight")
    if down is None or not values.numel() or values.numel() != rank_of(down):
        raise BadAdapter(f"lora_E is {tuple(values.shape)}, not one value for each row of lora_A")
    rank, alpha = real(config.get("init_r") or 12, "init_r"), real(config.get("lora_alpha") or 0, "lora_alpha")
    if rank <= 0:
        raise BadAdapter(f"init_r is {rank:g}")
    scale = (alpha if alpha > 0 else rank) / (rank + 1e-5)
    return {
        "lora_down.weight": computable(down, "lora_A")
        * computable(values, "lora_E").reshape([-1, *(1 for _ in down.shape[1:])]),
        "alpha": torch.tensor(scale * down.shape[0], dtype=torch.float64),
    }


def _pruned(full: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A module of which AdaLoRA pruned every rank: no change, as one of rank 1 with zeros.

    Raises BadAdapter for factors that are not `(0, in)` and `(out, 0)`.
    """
    down, up = full.get("lora_down.weight"), full.get("lora_up.weight")
    if down is None or up is None or down.dim() != 2 or up.dim() != 2 or down.shape[0] or up.shape[1]:
        raise BadAdapter("lora_E is empty, and lora_A and lora_B are not of rank 0")
    return {
        **full,
        "lora_down.weight": down.new_zeros(1, down.shape[1]),
        "lora_up.weight": up.new_zeros(up.shape[0], 1),
    }
