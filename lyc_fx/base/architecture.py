"""Telling which model an adapter file is for, by its metadata or by module names that only some models have."""

from collections.abc import Iterable, Mapping

_SAID = ("modelspec.architecture", "ss_base_model_version", "baseModel", "ss_sd_model_name")
_MARKS = (
    ("double_blocks", "Flux or HunyuanVideo, with their original names"),
    ("single_transformer_blocks", "Flux, with diffusers' names"),
    ("joint_blocks", "Stable Diffusion 3, with its original names"),
    ("input_blocks", "a UNet of Stable Diffusion, with its original names"),
    ("down_blocks", "a UNet of Stable Diffusion, with diffusers' names"),
    ("joint_transformer_blocks", "a transformer of diffusers"),
    ("cross_attn", "Wan or another video model"),
    ("transformer_blocks", "a transformer of diffusers"),
    ("self_attn", "a language model or text encoder"),
)
"""Parts of module names, and the models that have them; the first match counts"""


def purpose(metadata: Mapping[str, str], modules: Iterable[str], names: Iterable[str]) -> str | None:
    """Return a sentence on which model a file is for, or None if it is unknown or may be this model.

    `metadata` and `modules` are the file's; `names` are the parameters of the model at hand.
    """
    stated = next((f"{metadata[key]} ({key})" for key in _SAID if metadata.get(key)), None)
    if stated is not None:
        return f"The file says that it is for {stated}."
    flat, own = [m.replace(".", "_") for m in modules], [n.replace(".", "_") for n in names]
    for mark, what in _MARKS:
        if any(mark in module for module in flat):
            return None if any(mark in name for name in own) else f"Its names are those of {what}."
    return None
