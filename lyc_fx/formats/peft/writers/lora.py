"""LORA: LoCon without a core, all or none with DoRA, all or none with a bias of `lora_B`."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.errors import Unsupported
from lyc_fx.formats.peft.writers.module import Module, Writer, ranks_and_alphas


@final
class LoraWriter(Writer):
    method = "LORA"
    family = LoCon

    def fault(self, module: Module) -> str | None:
        adapter = module.adapter
        assert isinstance(adapter, LoCon)
        if adapter.mid is not None:
            return "a Tucker core (lora_mid)"
        magnitude, out = adapter.magnitude, adapter.up.shape[0]
        if magnitude is not None and not _embedded(module) and (magnitude.numel() != out or magnitude.shape[0] != out):
            return f"a magnitude of shape {tuple(magnitude.shape)}; PEFT's is one per output"
        if any(not isinstance(entry.adapter, Full) for entry in module.bias):
            return f"{module.bias[0].adapter.name} of its bias"
        return None

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        adapter = module.adapter
        assert isinstance(adapter, LoCon)
        if _embedded(module):
            made = {"lora_embedding_A": adapter.up.t(), "lora_embedding_B": adapter.down.t()}
            extra = {} if adapter.magnitude is None else {"lora_magnitude_vector": adapter.magnitude.flatten()}
            return made | extra
        ones = [1] * (adapter.down.dim() - 2)
        made = {
            "lora_A.weight": adapter.down,
            "lora_B.weight": adapter.up.reshape([*adapter.up.shape[:2], *ones]),
        }
        if adapter.magnitude is not None:
            shape = [1, -1, *ones] if ones else [-1]
            made["lora_magnitude_vector"] = adapter.magnitude.reshape(shape)
        for entry in module.bias:
            made["lora_B.bias"] = entry.adapter.factors()["diff"] / adapter.scale
        return made

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        dora = [m.name for m in modules if "magnitude" in m.adapter.factors()]
        if 0 < len(dora) < len(modules):
            raise Unsupported(f"PEFT's use_dora is for all modules, here it would be for: {', '.join(dora)}")
        biased = [m.name for m in modules if m.bias]
        if 0 < len(biased) < len(modules):
            raise Unsupported(f"PEFT's lora_bias is for all modules, here it would be for: {', '.join(biased)}")
        ranks = {m.name: m.adapter.rank or 1 for m in modules}
        return {
            **ranks_and_alphas(modules, ranks, "lora_alpha"),
            "use_dora": bool(dora),
            "lora_bias": bool(biased),
            "fan_in_fan_out": False,
            "bias": "all" if any(m.new for m in modules) else "none",
        }


def _embedded(module: Module) -> bool:
    """Whether this was read as an adapter of an embedding, whose factors have other names."""
    return any("lora_embedding_" in key for key in module.own[0].keys)
