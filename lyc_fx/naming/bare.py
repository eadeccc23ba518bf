"""Bare parameters in the place of a Linear: `x @ P`, so that the weight of that Linear is Pᵀ.

OpenAI's CLIP and OpenCLIP have two, which transformers has as Linear: `text_projection`, and `proj` of the vision
tower. Adapter tools see the Linear and write for `(out, in)`, also whole weights and differences.
"""

from collections.abc import Collection

_TEXT, _VISION, _MARK = "text_projection", "proj", "class_embedding"


def projections(names: Collection[str]) -> frozenset[str]:
    """Those of a model's parameters, all names of which are given."""
    return frozenset(name for name in names if projects(name, names))


def projects(name: str, names: Collection[str]) -> bool:
    """Whether this one of them is such a parameter."""
    path, dot, leaf = name.rpartition(".")
    return leaf == _TEXT or (leaf == _VISION and f"{path}{dot}{_MARK}" in names)
