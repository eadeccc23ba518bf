"""Recognizing checkpoints that a quantizer has packed: adapters fit only the weights from before quantization."""

from collections.abc import Iterable

_MARKS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("GPTQ or AWQ", (".qweight", ".qzeros")),
    ("bitsandbytes", (".weight.absmax", ".weight.quant_map")),
    ("bitsandbytes", (".SCB",)),
    ("compressed-tensors", (".weight_packed", ".weight_shape")),
    ("compressed-tensors (NVFP4)", (".weight_packed", ".weight_global_scale")),
    ("MXFP4", ("_blocks", "_scales")),
    ("MLX", (".scales", ".biases")),
    ("HQQ", (".W_q",)),
    ("EETQ or optimum-quanto", (".weight._data", ".weight._scale")),
)
"""Quantizers, each with the suffixes of the tensors that it stores in place of a weight"""


def quantizer_of(names: Iterable[str]) -> tuple[str, str] | None:
    """Return which quantizer made a checkpoint with these tensor names, and one name that shows it.

    None if the checkpoint is not quantized.
    """
    every = set(names)
    for quantizer, ends in _MARKS:
        for name in sorted(every):
            if name.endswith(ends[0]) and all(name.removesuffix(ends[0]) + end in every for end in ends):
                return quantizer, name
    return None


def explain_quantized(base: object, names: Iterable[str]) -> str | None:
    """Return an error message for a quantized base with these tensor names, or None if it is not quantized."""
    found = quantizer_of(names)
    if found is None:
        return None
    return (
        f"{base}: is quantized by {found[0]} ({found[1]}), so it does not hold the weights that adapters are for: "
        "fold into the checkpoint from before quantization, and quantize the result again"
    )
