"""OFT, BOFT and HRA: one block size, and one set of options, for all modules."""

from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor

from lyc_fx.algorithms.boft_input import InputBOFT
from lyc_fx.algorithms.hra import HRA
from lyc_fx.algorithms.oft_input import InputOFT
from lyc_fx.formats.peft.rotations import packed
from lyc_fx.formats.peft.writers.module import Module, Writer, same


@final
class OftWriter(Writer):
    method = "OFT"
    family = InputOFT

    def tensors(self, module: Module) -> Mapping[str, Tensor]:
        """An embedding has factors of another name and sign; that it is one is known from the keys it was read from."""
        adapter, [entry] = module.adapter, module.own
        assert isinstance(adapter, InputOFT)
        if any("oft_embedding_R" in key for key in entry.keys):
            return {"oft_embedding_R.weight": packed(-adapter.blocks)}
        return {"oft_R.weight": packed(adapter.blocks)}

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        made = [m.adapter for m in modules if isinstance(m.adapter, InputOFT)]
        size = same("block size", [a.rank for a in made])
        terms = int(same("number of terms", [a.terms for a in made]))
        bound = same("constraint", [a.alpha or 0.0 for a in made])
        return {
            "r": 0,
            "oft_block_size": size,
            "use_cayley_neumann": terms > 0,
            "num_cayley_neumann_terms": terms or 5,
            "coft": bound > 0,
            "eps": bound or 6e-5,
            "block_share": all(len(a.blocks) == 1 for a in made),
            "peft_version": "0.18.0",
            "bias": "all" if any(m.new for m in modules) else "none",
        }


@final
class BoftWriter(Writer):
    method = "BOFT"
    family = InputBOFT

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        shapes = [tuple(m.adapter.factors()["blocks"].shape) for m in modules]
        return {
            "boft_block_size": same("block size", [shape[2] for shape in shapes]),
            "boft_block_num": 0,
            "boft_n_butterfly_factor": same("number of stages", [shape[0] for shape in shapes]),
            "bias": "all" if any(m.new for m in modules) else "none",
        }


@final
class HraWriter(Writer):
    method = "HRA"
    family = HRA

    def settings(self, modules: Sequence[Module]) -> Mapping[str, Any]:
        made = [m.adapter for m in modules if isinstance(m.adapter, HRA)]
        return {
            "r": same("rank", [a.rank for a in made]),
            "apply_GS": bool(same("apply_GS", [a.orthonormal for a in made])),
            "bias": "all" if any(m.new for m in modules) else "none",
        }
