"""The file's own names as the model's, where no model is named."""

from collections.abc import Mapping

from lyc_fx.adapters import AdapterSet
from lyc_fx.errors import BadAdapter
from lyc_fx.naming import PREFIXES, Target

_SHOWN = 5
_FLAT = {Target.lycoris, Target.nhwc, Target.kohya, Target.comfyui}
"""Conventions that take the names of LyCORIS and kohya as they are"""


def own_shapes(adapters: AdapterSet, target: Target) -> Mapping[str, tuple[int, ...]] | None:
    """The file's own modules as if they were the model's; None where the target keeps their names as they are.

    Raises BadAdapter where the model's names cannot be read out of them.
    """
    flat = [entry.module for entry in adapters.entries if "." not in entry.module]
    shapes = {f"{e.module}.{e.leaf}": e.adapter.weight_shape() for e in adapters.entries}
    known = {name: shape for name, shape in shapes.items() if shape is not None}
    if not flat and len(known) == len(shapes):
        return known
    kohya = [m for m in flat if any(m.startswith(f"{prefix}_") for prefix in PREFIXES if prefix != "lycoris")]
    if len(flat) == len(adapters.entries) and target in _FLAT and (target is not Target.kohya or kohya == flat):
        return None
    example = ", ".join([*flat, *(set(shapes) - set(known))][:_SHOWN])
    raise BadAdapter(
        f"{adapters.source}: {example}: the model's own names and shapes cannot be read out of these; name the model "
        "that they are for, or a checkpoint of it: like=… (command line: --like FILE)"
    )
