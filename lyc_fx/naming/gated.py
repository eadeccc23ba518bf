"""Experts whose two parameters, `gate_up_proj` and `down_proj`, show each other's orientation."""

from collections.abc import Mapping


def in_before_out(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether experts' square `down_proj` is `(experts, in, out)`: then the parameter beside it is `(experts, X, 2·X)`.

    GPT-OSS has all its experts so. One that is not square shows it itself.
    """
    owner, _, leaf = name.rpartition(".")
    own, beside = shapes[name], shapes.get(f"{owner}.gate_up_proj", ())
    square = leaf == "down_proj" and len(own) == 3 and own[1] == own[2]
    return square and beside == (own[0], own[1], 2 * own[1])
