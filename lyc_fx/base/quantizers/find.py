"""Finding out whether a module's weight is quantized, and by what."""

from torch import nn

from lyc_fx.base.quantizers.bitsandbytes import Bits4, Bits8, is_4bit, is_8bit
from lyc_fx.base.quantizers.quantized import Quantized, tensor_of
from lyc_fx.base.quantizers.quanto import Quanto, is_quanto
from lyc_fx.base.quantizers.subclass import QuantizedTensor, dequantizes
from lyc_fx.base.quantizers.torchao import Torchao, is_torchao


def quantized(module: nn.Module, name: str = "weight") -> Quantized | None:
    """Return what is known of a module's quantized weight; None for any other, and where there is none."""
    tensor = tensor_of(module, name)
    if tensor is None:
        return None
    if isinstance(module, nn.Linear) and is_8bit(tensor):
        return Bits8(module, name)
    if isinstance(module, nn.Linear) and is_4bit(module, tensor):
        return Bits4(module, name)
    if is_torchao(tensor):
        return Torchao(module, name)
    if name == "weight" and is_quanto(module, tensor):
        return Quanto(module, name)
    return QuantizedTensor(module, name) if dequantizes(tensor) else None
