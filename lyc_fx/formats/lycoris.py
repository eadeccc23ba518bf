"""LyCORIS and kohya files: `<prefix>_<module path with _>.<suffix>`, or dotted module paths before the suffix.

`alpha` is a tensor of one element per module. Which family a module has, its rank and its layout come from the
suffixes and the shapes alone; nothing in the header is needed. Besides one adapter of its weight a module may
have one of its bias (`diff_b`, `b_norm`), and a sparse residual from extraction.
"""

import warnings
from collections import defaultdict
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from lyc_fx.adapters import AdapterSet, Entry
from lyc_fx.errors import BadAdapter
from lyc_fx.families import FAMILIES, Adapter
from lyc_fx.families.adapter import number
from lyc_fx.families.full import Full
from lyc_fx.formats.format import Format

_WEIGHT = {suffix: f for f in FAMILIES for suffix in (*f.suffixes.values(), *f.scalars.values())}
_BIAS = {suffix: f for f in FAMILIES for suffix in f.bias_suffixes.values()}
_SHARED = {s for f in FAMILIES for s in f.suffixes.values() if sum(s in g.suffixes.values() for g in FAMILIES) > 1}
_SPARSE = ("bias_indices", "bias_values", "bias_size")
"""What LyCORIS's extraction leaves of the weight's difference beside its low-rank part, as a sparse matrix."""
_PLAIN = "weight"
"""A suffix of IA3, and of every checkpoint: it counts only beside `on_input`."""
_SUFFIXES = sorted({*_WEIGHT, *_BIAS, *_SPARSE, "alpha"}, key=len, reverse=True)


@final
class Lycoris(Format):
    """Keys as LyCORIS 4.1 and sd-scripts write them."""

    name = "lycoris"

    def recognises(self, key: str) -> bool:
        parts = _split(key)
        return parts is not None and parts[1] != _PLAIN

    def read(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], source: str) -> AdapterSet:
        modules: dict[str, dict[str, Tensor]] = defaultdict(dict)
        unread = []
        for key, tensor in tensors.items():
            parts = _split(key)
            if parts is None or (parts[1] == _PLAIN and f"{parts[0]}.on_input" not in tensors):
                unread.append(key)
            else:
                modules[parts[0]][parts[1]] = tensor
        entries, faults = [], []
        for module, group in modules.items():
            try:
                entries += _entries(module, group)
            except BadAdapter as error:
                faults.append(f"  {module}: {error}")
        if faults:
            raise BadAdapter("\n".join([f"{source}: {len(faults)} modules cannot be used:", *faults]))
        return AdapterSet(tuple(entries), source, dict(metadata), tuple(unread))

    def write(self, adapters: AdapterSet) -> dict[str, Tensor]:
        return {
            f"{entry.module}.{suffix}": tensor
            for entry in adapters.entries
            for suffix, tensor in entry.adapter.written(entry.leaf).items()
        }


def _split(key: str) -> tuple[str, str] | None:
    """`a.b.lora_up.weight` → (`a.b`, `lora_up.weight`)."""
    for suffix in _SUFFIXES:
        if key.endswith(f".{suffix}"):
            return key[: -len(suffix) - 1], suffix
    return None


def _entries(module: str, group: Mapping[str, Tensor]) -> list[Entry]:
    """The adapters of one module. Raises BadAdapter for what is incomplete, mixed or not finite."""
    alpha = None if "alpha" not in group else _alpha(group["alpha"])
    made: list[tuple[str, Adapter, list[str]]] = []
    own = [suffix for suffix in group if suffix in _WEIGHT]
    if own:
        family = _family(own, group)
        made.append(("weight", family.read(group, alpha), own))
    bias = [suffix for suffix in group if suffix in _BIAS]
    for family in {_BIAS[suffix] for suffix in bias}:
        made.append(("bias", family.read(group, suffixes=family.bias_suffixes), bias))
    sparse = [suffix for suffix in group if suffix in _SPARSE]
    if sparse:
        made.append(("weight", Full(diff=_dense(group)), sparse))
    if not made:
        raise BadAdapter("there is an alpha, but no factor")
    for _, adapter, _ in made:
        adapter.check()
        _warn_of_zero(module, adapter)
    made[0][2].extend(suffix for suffix in group if suffix == "alpha")
    return [Entry(module, leaf, a, tuple(f"{module}.{suffix}" for suffix in keys)) for leaf, a, keys in made]


def _family(own: list[str], group: Mapping[str, Tensor]) -> type[Adapter]:
    """The family whose suffixes these are; Diag-OFT and BOFT share theirs, and differ in dimensions."""
    telling = [suffix for suffix in own if suffix not in _SHARED]
    families = {_WEIGHT[suffix] for suffix in telling}
    fitting = [f for f in FAMILIES if {*f.suffixes.values(), *f.scalars.values()}.issuperset(own)]
    if len(families) > 1 or not fitting:
        raise BadAdapter(f"factors of several algorithms: {', '.join(sorted(group))}")
    if families:
        return families.pop()
    if "oft_blocks" not in group:
        raise BadAdapter(f"{', '.join(own)} without other factors is not complete")
    kind = "boft" if group["oft_blocks"].dim() == 4 else "diag-oft"
    return next(f for f in FAMILIES if f.name == kind)


def _dense(group: Mapping[str, Tensor]) -> Tensor:
    """The sparse residual of an extraction as a dense difference of the weight."""
    missing = [suffix for suffix in _SPARSE if suffix not in group]
    if missing:
        raise BadAdapter(f"a sparse residual without {', '.join(missing)} is not complete")
    indices, values = group["bias_indices"].long(), group["bias_values"]
    size = [int(n) for n in group["bias_size"].tolist()]
    fits = indices.dim() == 2 and indices.shape == (len(size), values.numel())
    if not fits or bool((indices < 0).any()) or bool((indices >= torch.tensor(size)[:, None]).any()):
        raise BadAdapter(f"bias_indices {tuple(indices.shape)} do not lie within bias_size {tuple(size)}")
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=True).to_dense()


def _alpha(tensor: Tensor) -> float:
    try:
        return number(tensor)
    except BadAdapter as error:
        raise BadAdapter(f"alpha: {error}") from error


def _warn_of_zero(module: str, adapter: Adapter) -> None:
    if adapter.uses_alpha and adapter.rank is not None and adapter.alpha == 0 and not adapter.alpha_bounds:
        warnings.warn(f"{module}: alpha is 0, read as LyCORIS reads it: scale 1", stacklevel=2)
