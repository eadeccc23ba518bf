"""Gain: one learned factor per element of a vector, such as the bias of a layer whose output IA3 scales (PEFT)."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lyc_fx.adapters.adapter import Strength
from lyc_fx.adapters.shaped import Shaped
from lyc_fx.algebra.action import Action
from lyc_fx.algebra.mapped import Mapped
from lyc_fx.algebra.maps import Diagonal


@final
@dataclass(frozen=True, eq=False, kw_only=True)
class Gain(Shaped):
    """`b'[o] = b[o] · (1 + s · g[o])`, for a bias or another vector."""

    name = "gain"
    suffixes = {"gain": "gain"}
    bias_suffixes = {"gain": "gain_b"}
    variants = {"": {"gain": "channels"}}
    keeps_zero = True

    gain: Tensor

    def action(self, strength: Strength) -> Action:
        return Mapped(rows=Diagonal(1 + strength * self.gain))
