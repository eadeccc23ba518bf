"""Saying of a checkpoint that no adapter fits that a quantizer has packed it."""

from collections.abc import Mapping

from lyc_fx.base.packed import method_in, quantizer_of
from lyc_fx.binding.fitting import Weight
from lyc_fx.checkpoint.base import Base
from lyc_fx.checkpoint.ties import configurations


def explain_quantized(given: object, base: Base, weights: Mapping[str, Weight]) -> str | None:
    """Return an error message for a base, named as it was given, if it is quantized; else None.

    The configuration knows the quantizer's name best.
    """
    found = quantizer_of(weights)
    if found is None:
        return None
    methods = [method for config in configurations(base).values() if (method := method_in(config)) is not None]
    return (
        f"{given}: is quantized by {methods[0] if methods else found[0]} ({found[1]}), so it does not hold the weights "
        "that adapters are for: fold into the checkpoint from before quantization, and quantize the result again, or "
        "keep the adapter beside the model"
    )
