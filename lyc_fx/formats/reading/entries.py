"""From the tensors of one module, under LyCORIS's suffixes, to its adapters. Every format comes through here.

Besides one adapter of its weight a module may have one of its bias (`diff_b`, `b_norm`), and a sparse residual
from extraction.
"""

import warnings
from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor

from lyc_fx.adapters.adapter import Adapter
from lyc_fx.adapters.adapter_set import Entry
from lyc_fx.adapters.numbers import number
from lyc_fx.algorithms import families
from lyc_fx.algorithms.full import Full
from lyc_fx.algorithms.replace import Replace
from lyc_fx.errors import BadAdapter
from lyc_fx.formats.reading.layouts import computable
from lyc_fx.formats.reading.suffixes import SPARSE, suffixes

_SPARSEST = 256
"""How many values of the dense difference there may be for each stored one (extraction keeps one in 50)"""
_REPLACED = Replace.suffixes["value"]
"""May stand beside a sum: an embedding that PEFT saves as a whole, and adapts as well."""
_BESIDE = {"alpha": "an alpha", "reshape_weight": "a reshape_weight"}
"""What stands beside the factors of a module"""


def entries(module: str, group: Mapping[str, Tensor], keys: Mapping[str, str]) -> list[Entry]:
    """The adapters of one module, from its tensors and the file's keys by suffix.

    Raises BadAdapter for what is incomplete, mixed or not finite.
    """
    alpha = None if "alpha" not in group else _alpha(group["alpha"])
    known = suffixes()
    if unknown := group.keys() - set(known.longest_first) - _BESIDE.keys():
        raise BadAdapter(f"no algorithm has the factors {', '.join(sorted(unknown))}")
    made: list[tuple[str, Adapter, list[str]]] = []
    own = [suffix for suffix in group if suffix in known.weight and suffix != _REPLACED]
    if own:
        made.append(("weight", _family(own, group).read(group, alpha), own))
    if _REPLACED in group:
        _refuse_unsummable(made)
        made.append(("weight", Replace.read(group, None if own else alpha), [_REPLACED]))
    for family in dict.fromkeys(known.bias[suffix] for suffix in group if suffix in known.bias):
        used = [suffix for suffix in group if known.bias.get(suffix) is family]
        made.append(("bias", family.read(group, suffixes=family.bias_suffixes), used))
    sparse = [suffix for suffix in group if suffix in SPARSE]
    if sparse:
        made.append(("weight", Full(diff=_dense(group)), sparse))
    if not made:
        raise BadAdapter(f"there is {' and '.join(text for s, text in _BESIDE.items() if s in group)}, but no factor")
    for _, adapter, _ in made:
        adapter.check()
        _warn_of_zero(module, adapter)
    made[0][2].extend(suffix for suffix in group if suffix in _BESIDE)
    shapes = {"weight": _shape(group["reshape_weight"])} if "reshape_weight" in group else {}
    return [
        Entry(module, leaf, adapter, tuple(keys[s] for s in used), shapes.get(leaf)) for leaf, adapter, used in made
    ]


def _family(own: list[str], group: Mapping[str, Tensor]) -> type[Adapter]:
    """The family whose suffixes these are; Diag-OFT and BOFT share theirs, and differ in dimensions."""
    known = suffixes()
    sure = {known.weight[suffix] for suffix in own if suffix not in known.shared}
    fitting = [f for f in families() if {*f.suffixes.values(), *f.scalars.values()}.issuperset(own)]
    if len(sure) > 1 or not fitting:
        raise BadAdapter(f"factors of several algorithms: {', '.join(sorted(group))}")
    if sure:
        return sure.pop()
    if "oft_blocks" not in group:
        raise BadAdapter(f"{', '.join(own)} without other factors is not complete")
    kind = "boft" if group["oft_blocks"].dim() == 4 else "diag-oft"
    return next(f for f in families() if f.name == kind)


def _refuse_unsummable(made: list[tuple[str, Adapter, list[str]]]) -> None:
    """Raise BadAdapter where a change was trained on a new weight and depends on its values."""
    for _, adapter, _ in made:
        if not adapter.additive:
            raise BadAdapter(f"a new weight, and {adapter.name} {adapter.variant} on top of it: save them merged")


def _dense(group: Mapping[str, Tensor]) -> Tensor:
    """The sparse residual of an extraction as a dense difference of the weight."""
    missing = [suffix for suffix in SPARSE if suffix not in group]
    if missing:
        raise BadAdapter(f"a sparse residual without {', '.join(missing)} is not complete")
    values = computable(group["bias_values"], "bias_values")
    indices, lengths = (_whole(group[suffix], suffix) for suffix in ("bias_indices", "bias_size"))
    size = lengths.reshape(-1).tolist()
    if values.dim() != 1:
        raise BadAdapter(f"bias_values is {tuple(values.shape)}, not a list of values")
    if min(size, default=0) < 1 or prod(size) > max(_SPARSEST * values.numel(), _SPARSEST):
        raise BadAdapter(f"bias_size {tuple(size[:4])} is empty, or too large for {values.numel()} values")
    fits = indices.dim() == 2 and indices.shape == (len(size), values.numel())
    if not fits or bool((indices < 0).any()) or bool((indices >= torch.tensor(size)[:, None]).any()):
        raise BadAdapter(f"bias_indices {tuple(indices.shape)} do not lie within bias_size {tuple(size)}")
    return torch.sparse_coo_tensor(indices, values, size, check_invariants=True).to_dense()


def _shape(tensor: Tensor) -> tuple[int, ...]:
    """The shape that a `reshape_weight` asks for."""
    sizes = [] if tensor.is_meta or tensor.is_complex() else tensor.reshape(-1).tolist()
    if not sizes or any(size < 1 or not float(size).is_integer() for size in sizes):
        raise BadAdapter(f"reshape_weight {sizes} is no shape")
    return tuple(int(size) for size in sizes)


def _whole(tensor: Tensor, name: str) -> Tensor:
    """A tensor of whole numbers, which older files store in a floating dtype."""
    whole = tensor.dtype not in (torch.bool, torch.uint64) and not tensor.is_complex()
    found = tensor.long() if whole else tensor
    if not whole or bool((found.double() != tensor.double()).any()):
        raise BadAdapter(f"{name} does not hold whole numbers, but {tensor.dtype}")
    return found


def _alpha(tensor: Tensor) -> float:
    try:
        return number(tensor)
    except BadAdapter as error:
        raise BadAdapter(f"alpha: {error}") from error


def _warn_of_zero(module: str, adapter: Adapter) -> None:
    if adapter.uses_alpha and adapter.rank is not None and adapter.alpha == 0 and not adapter.alpha_bounds:
        warnings.warn(f"{module}: alpha is 0, read as LyCORIS reads it: scale 1", stacklevel=2)
