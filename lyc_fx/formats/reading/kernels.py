"""Permutations between LyCORIS's layout of factors and the kernel-first one: the table is in `formats.nhwc`."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from lyc_fx.formats.reading.detection import consistent

Group = Mapping[str, Tensor]
_LOCON = ("lora_down.weight", "lora_up.weight", "lora_mid.weight")
_LOHA = ("hada_w1_b", "hada_w2_b", "hada_t1", "hada_t2")
_LOHA_UP = ("hada_w1_a", "hada_w2_a")
_PAIRS = (("lora_up.weight", "lora_down.weight"), ("hada_w1_a", "hada_w1_b"), ("hada_w2_a", "hada_w2_b"))


def moved(suffixes: Collection[str]) -> set[str]:
    """The suffixes, of those of one module, whose tensors lie otherwise than in LyCORIS."""
    loha = _LOHA if "hada_t1" in suffixes else _LOHA + _LOHA_UP
    lokr = ("lokr_w2_a",) if "lokr_t2" in suffixes else ()
    return {suffix for suffix in (*_LOCON, *loha, *lokr) if suffix in suffixes}


def kernel_first(tensor: Tensor) -> Tensor:
    """`(a, b, *K)` → `(*K, b, a)`"""
    return tensor.permute(*range(2, tensor.dim()), 1, 0)


def kernel_last(tensor: Tensor) -> Tensor:
    """`(*K, b, a)` → `(a, b, *K)`; what has fewer dimensions stays."""
    return tensor.permute(-1, -2, *range(tensor.dim() - 2)) if tensor.dim() >= 2 else tensor


def turned(group: Group) -> dict[str, Tensor]:
    """Views in LyCORIS's layout of a kernel-first group; of an up kernel, its first tap."""
    cut = {up: _first_tap(group[up]) for up, _ in _spatial(group)}
    return {s: kernel_last(t) if s in moved(group) else t for s, t in {**group, **cut}.items()}


def named(group: Group) -> Group:
    """The group with the port's spatial LoHa under the reference's names, where only those make the factors meet."""
    if "hada_t1" in group or not all(s in group and group[s].dim() > 2 for pair in _PAIRS[1:] for s in pair):
        return group
    crossed = {there: group[here] for pair in _PAIRS[1:] for here, there in (pair, pair[::-1])}
    other = {**group, **crossed}
    return other if not consistent(turned(group)) and consistent(turned(other)) else group


def varying(group: Group) -> list[str]:
    """The up factors of a kernel-first group whose kernel is not the same at every tap."""
    return [up for up, _ in _spatial(group) if not torch.equal(group[up], _first_tap(group[up]).expand_as(group[up]))]


def _spatial(group: Group) -> list[tuple[str, str]]:
    """The pairs whose up factor carries the kernel of its down factor, and that is none of a single tap."""
    pairs = [(up, down) for up, down in _PAIRS if up in group and down in group]
    kernels = {up: (group[up].shape[:-2], group[down].shape[:-2]) for up, down in pairs}
    return [(up, down) for up, down in pairs if kernels[up][0] == kernels[up][1] and kernels[up][0].numel() > 1]


def _first_tap(up: Tensor) -> Tensor:
    return up[(slice(1),) * (up.dim() - 2)]
