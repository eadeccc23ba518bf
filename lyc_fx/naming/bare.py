"""Bare parameters in the place of a Linear: `x @ P`, so that the weight of that Linear is Pᵀ.

OpenAI's CLIP and OpenCLIP have two, which transformers has as Linear: `text_projection`, and `proj` of the vision
tower. Adapter tools see the Linear and write for `(out, in)`, also whole weights and differences.
"""

from collections.abc import Collection, Mapping

_TEXT, _VISION, _MARK = "text_projection", "proj", "class_embedding"


def projections(names: Collection[str]) -> frozenset[str]:
    """Those of a model's parameters, all names of which are given."""
    return frozenset(name for name in names if projects(name, names))


def projects(name: str, names: Collection[str]) -> bool:
    """Whether this one of them is such a parameter."""
    path, dot, leaf = name.rpartition(".")
    return leaf == _TEXT or (leaf == _VISION and f"{path}{dot}{_MARK}" in names)


def in_before_out(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether experts' square `down_proj` is `(experts, in, out)`: then the parameter beside it is `(experts, X, 2·X)`.

    GPT-OSS has all its experts so. One that is not square shows it itself.
    """
    owner, _, leaf = name.rpartition(".")
    own, beside = shapes[name], shapes.get(f"{owner}.gate_up_proj", ())
    square = leaf == "down_proj" and len(own) == 3 and own[1] == own[2]
    return square and beside == (own[0], own[1], 2 * own[1])
