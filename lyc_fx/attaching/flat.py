"""Tensors that lie one after another in the memory of one, so that one copy overwrites them all.

Each is a tensor of its own to modules and compilers, at an aligned address. Their version is one: autograd notices when
any of them is overwritten between a forward and its backward, and a copy into their whole memory counts.
"""

from collections.abc import Hashable, Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

_ALIGNED = 64
"""Bytes: a cache line, and all that vector instructions and compilers ask for"""
K = TypeVar("K", bound=Hashable)


def flat(like: Mapping[K, Tensor], devices: Mapping[K, torch.device]) -> dict[K, Tensor]:
    """Tensors of these shapes, strides and dtypes without values, which lie in one memory for each dtype and device.

    Parameters get memory of their own, as optimizers and gradients expect.
    """
    sizes: dict[tuple[torch.dtype, torch.device], int] = {}
    starts = {}
    for key, tensor in like.items():
        if isinstance(tensor, nn.Parameter):
            continue
        alike = tensor.dtype, devices[key]
        starts[key] = sizes.get(alike, 0)
        step = max(_ALIGNED // tensor.dtype.itemsize, 1)
        sizes[alike] = starts[key] + -(-_span(tensor) // step) * step
    memory = {alike: torch.empty(size, dtype=alike[0], device=alike[1]) for alike, size in sizes.items()}
    found = {key: _part(memory[like[key].dtype, devices[key]], like[key], start) for key, start in starts.items()}
    return {key: found[key] if key in found else _parameter(t, devices[key]) for key, t in like.items()}


def wholes(tensors: Iterable[Tensor]) -> dict[Hashable, Tensor]:
    """The whole memory of tensors, each once, as tensors of one dimension that share it; by `memory_of`."""
    return {memory_of(each): _whole(each) for each in tensors}


def part_of(whole: Tensor, tensor: Tensor) -> Tensor:
    """What lies in a copy of a tensor's whole memory where the tensor lies in its own."""
    return _part(whole, tensor, int(tensor.storage_offset()))


def memory_of(tensor: Tensor) -> Hashable:
    """What is equal for tensors that lie in the same memory."""
    return tensor.untyped_storage().data_ptr(), tensor.dtype, tensor.device


def _whole(tensor: Tensor) -> Tensor:
    count = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
    return tensor.detach().as_strided((count,), (1,), 0)


def _parameter(like: Tensor, device: torch.device) -> Tensor:
    empty = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=device)
    return nn.Parameter(empty, like.requires_grad)


def _part(whole: Tensor, like: Tensor, start: int) -> Tensor:
    # Detached, it is no view to compilers, which would trace the whole with it.
    return whole.as_strided(like.shape, like.stride(), start).detach()


def _span(tensor: Tensor) -> int:
    """How many elements of memory the strides reach over."""
    if not tensor.numel():
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
