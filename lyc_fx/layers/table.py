"""The table of layer kinds. A new one is a file and a row here."""

import torch

from lyc_fx.layers.addmm import Addmm
from lyc_fx.layers.convolution import Convolution
from lyc_fx.layers.kind import LayerKind
from lyc_fx.layers.linear import Linear

_ROWS: tuple[LayerKind, ...] = (Linear(), Addmm(), Convolution())
KINDS: dict[torch._ops.OpOverload, LayerKind] = {op: kind for kind in _ROWS for op in kind.ops}
"""Every layer kind by its operators."""
