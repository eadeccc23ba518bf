"""The table of layer kinds. A new one is a file and a row here."""

import torch

from lyc_fx.layers.addmm import Addmm
from lyc_fx.layers.any_convolution import AnyConvolution
from lyc_fx.layers.bmm import Bmm
from lyc_fx.layers.convolution import Convolution
from lyc_fx.layers.embedding import Embedding
from lyc_fx.layers.kind import LayerKind
from lyc_fx.layers.linear import Linear
from lyc_fx.layers.matmul import Matmul, Mm
from lyc_fx.layers.transposed_convolution import TransposedConvolution

_ROWS: tuple[LayerKind, ...] = (
    Linear(), Addmm(), Matmul(), Mm(), Bmm(), Embedding(), Convolution(), TransposedConvolution(), AnyConvolution(),
)  # fmt: skip
KINDS: dict[torch._ops.OpOverload, LayerKind] = {op: kind for kind in _ROWS for op in kind.ops}
"""Every layer kind by its operators."""
