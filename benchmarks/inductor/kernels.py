"""The fused kernels of a program, compiled by triton as inductor would have it done."""

import re

from torch._inductor import config
from torch._inductor.codecache import PyCodeCache

from inductor.code import Code

_KERNEL = re.compile(r"^(\w+) = async_compile\.triton\('\w+', '''(.*?)'''", re.MULTILINE | re.DOTALL)


def cubins(code: Code) -> dict[str, int]:
    """The bytes of each kernel's cubins, by name. Raises what triton raises."""
    return {name: _compiled(name, source) for name, source in _KERNEL.findall(code.source)}


def _compiled(name: str, source: str) -> int:
    tuner = getattr(PyCodeCache.load(source), name)
    with config.patch(use_static_cuda_launcher=False):  # the static launcher keeps no binary
        binaries = [tuner._precompile_config(c).kernel.asm["cubin"] for c in tuner.configs]
    if not all(binary.startswith(b"\x7fELF") for binary in binaries):
        raise AssertionError(f"{name} has no cubin")
    return sum(map(len, binaries))
