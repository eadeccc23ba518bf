"""LOHA: without DoRA, and with a core for all convolutions or for none."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from lyc_fx.algorithms.loha import LoHa
from lyc_fx.formats.peft.writers.module import Module, PlainWriter, ranks_and_alphas


@final
class LohaWriter(PlainWriter):
    method = "LOHA"
    family = LoHa

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        ranks = {m.name: m.adapter.rank or 1 for m in modules}
        cores = any("t1" in m.adapter.factors() for m in modules)
        return {**ranks_and_alphas(modules, ranks, "alpha"), "use_effective_conv2d": cores}
