"""Bare parameters used like a Linear: `x @ P`, which is a Linear with the weight `Pᵀ`.

OpenAI's CLIP and OpenCLIP have two, for which transformers has Linear layers: `text_projection`, and `proj` of the
vision tower. Adapter tools see those layers, and write everything for `(out, in)`, even whole weights and differences.
"""

from collections.abc import Collection

_TEXT, _VISION, _MARK = "text_projection", "proj", "class_embedding"


def projections(names: Collection[str]) -> frozenset[str]:
    """Return which of a model's parameters, all names of which are given, are such projections."""
    return frozenset(name for name in names if is_projection(name, names))


def is_projection(name: str, names: Collection[str]) -> bool:
    """Return whether a parameter is such a projection; `names` are those of all parameters of the model."""
    path, dot, leaf = name.rpartition(".")
    return leaf == _TEXT or (leaf == _VISION and f"{path}{dot}{_MARK}" in names)
