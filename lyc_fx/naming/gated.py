"""The orientation of experts' parameters: that of `gate_up_proj` shows that of a square `down_proj`."""

from collections.abc import Mapping


def in_before_out(name: str, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a square `down_proj` of experts is stored as `(experts, in, out)`, as in GPT-OSS.

    That is so if `gate_up_proj` beside it is `(experts, n, 2·n)`. If `down_proj` is not square, this returns False: its
    own shape shows the orientation.
    """
    owner, _, leaf = name.rpartition(".")
    own, beside = shapes[name], shapes.get(f"{owner}.gate_up_proj", ())
    square = leaf == "down_proj" and len(own) == 3 and own[1] == own[2]
    return square and beside == (own[0], own[1], 2 * own[1])
