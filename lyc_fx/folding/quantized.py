"""Bases whose weights are packed by a quantizer, named by it: adapters are for the weights before."""

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
"""Quantizers, and the ends of the names that each leaves beside one another"""


def quantizer_of(names: Iterable[str]) -> tuple[str, str] | None:
    """Which quantizer made a checkpoint with these names, and one of the names that show it; None for a plain one."""
    every = set(names)
    for quantizer, ends in _MARKS:
        for name in sorted(every):
            if name.endswith(ends[0]) and all(name.removesuffix(ends[0]) + end in every for end in ends):
                return quantizer, name
    return None


def advice(base: object, names: Iterable[str]) -> str | None:
    """What to do about a quantized base; None for a plain one."""
    found = quantizer_of(names)
    if found is None:
        return None
    return (
        f"{base}: is quantized by {found[0]} ({found[1]}), so that the weights that adapters are for are not in it: "
        "fold into the checkpoint that it was made of, and quantize that again"
    )
