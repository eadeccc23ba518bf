"""LOHA: without DoRA, and with a core for all convolutions or for none."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from lyc_fx.algorithms.loha import LoHa
from lyc_fx.formats.peft.writers.module import Module, Writer, ranks_and_alphas


@final
class LohaWriter(Writer):
    method = "LOHA"
    family = LoHa

    def fault(self, module: Module) -> str | None:
        if "magnitude" in module.adapter.factors():
            return "PEFT's LOHA has no DoRA"
        return "PEFT's LOHA has no bias" if module.bias or module.new else None

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        adapter = module.adapter
        return {adapter.suffixes[name]: factor for name, factor in adapter.factors().items()}

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        ranks = {m.name: m.adapter.rank or 1 for m in modules}
        cores = any("t1" in m.adapter.factors() for m in modules)
        return {**ranks_and_alphas(modules, ranks, "alpha"), "use_effective_conv2d": cores}
