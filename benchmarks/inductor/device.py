"""A stand-in for one H100 (sm_90): all that inductor and triton ask of a device to write code for it.

Nothing is ever run on it. torch and triton keep some of the answers (`functools.cache`), even after the stand-in is
gone: a process that has used it is good for nothing else.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo import device_interface
from torch._inductor.runtime import triton_helpers
from torch._prims_common import suggest_memory_format
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CAPABILITY = (9, 0)
DEVICE = torch.device("cuda", 0)
_PROPERTIES = SimpleNamespace(
    name="stand-in for an H100",
    major=CAPABILITY[0],
    minor=CAPABILITY[1],
    multi_processor_count=132,
    warp_size=32,
    max_threads_per_block=1024,
    max_threads_per_multi_processor=2048,
    regs_per_multiprocessor=65536,
    shared_memory_per_block=48 * 2**10,
    shared_memory_per_block_optin=227 * 2**10,
    shared_memory_per_multiprocessor=228 * 2**10,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
)


def _always(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


_ANSWERS = {
    "is_available": _always(True),
    "device_count": _always(1),
    "current_device": _always(0),
    "get_device_properties": _always(_PROPERTIES),
    "get_device_capability": _always(CAPABILITY),
    "get_device_name": _always(_PROPERTIES.name),
}
_ACTIONS = {
    "set_device": _always(None),
    "synchronize": _always(None),
    "get_rng_state": lambda *_: torch.get_rng_state(),  # dynamo keeps the generator's state around a trace
    "set_rng_state": _always(None),
    "_lazy_init": _always(None),
    "_exchange_device": _always(0),
    "_maybe_exchange_device": _always(0),
}


def _layout(x: Tensor, weight: Tensor, _: object) -> torch.memory_format:
    """The layout of a convolution's output by cuDNN; torch has it contiguous where it was built without cuDNN."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(weight.ndim)
    return last if last in map(suggest_memory_format, (x, weight)) else torch.contiguous_format


class _Worker(device_interface.CudaInterface.Worker):
    current_device = staticmethod(_always(0))
    get_device_properties = staticmethod(_always(_PROPERTIES))


class _Interface(device_interface.CudaInterface):
    """dynamo's and inductor's view of the device; the class that it stands for took torch.cuda's functions early."""

    Worker = _Worker
    current_device = staticmethod(_always(0))
    device_count = staticmethod(_always(1))
    get_device_properties = staticmethod(_always(_PROPERTIES))
    set_device = staticmethod(_always(None))
    synchronize = staticmethod(_always(None))
    exchange_device = staticmethod(_always(0))
    maybe_exchange_device = staticmethod(_always(0))
    get_raw_stream = staticmethod(_always(0))


_DRIVER = SimpleNamespace(
    get_current_target=_always(GPUTarget("cuda", 10 * CAPABILITY[0] + CAPABILITY[1], _PROPERTIES.warp_size)),
    get_current_device=_always(0),
    get_current_stream=_always(0),
    get_active_torch_device=_always(DEVICE),
    get_device_interface=_always(torch.cuda),
    is_active=_always(True),
)


@contextmanager
def stand_in() -> Iterator[None]:
    """The device is there within this block."""
    list(device_interface.get_registered_device_interfaces())  # torch's own are registered first, and would replace it
    with ExitStack() as stack:
        for name, answer in {**_ANSWERS, **_ACTIONS}.items():
            stack.enter_context(patch.object(torch.cuda, name, answer))
        stack.enter_context(patch.object(torch.version, "cuda", "12.8"))
        stack.enter_context(patch.object(torch._C, "_conv_determine_backend_memory_format", _layout))
        stack.enter_context(
            patch.dict(device_interface.device_interfaces, {"cuda": _Interface, str(DEVICE): _Interface})
        )
        stack.enter_context(patch.object(driver, "_active", _DRIVER))
        stack.enter_context(patch.object(triton_helpers, "set_driver_to_gpu", _always(None)))
        yield
