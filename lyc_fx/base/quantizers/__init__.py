"""Quantized weights: what each quantizer stores, which weight that stands for, and another one of the same form.

No quantizer is imported here: a weight is recognized by what it is, and its own package is there if it is.
"""

from lyc_fx.base.quantizers.find import quantized
from lyc_fx.base.quantizers.quantized import Quantized

__all__ = ["Quantized", "quantized"]
