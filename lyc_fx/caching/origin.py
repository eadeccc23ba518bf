"""Where compiled code comes from, and whether it can run here."""

import platform
from hashlib import sha256
from pathlib import Path

import torch

_CPU = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features", "CPU ")
"""The lines of /proc/cpuinfo that say which instructions a processor has"""


def origin() -> dict[str, str]:
    """What must be the same where compiled code is used again.

    Inductor's own keys have the version of torch and the GPU. They do not have the processor, and a kernel which is
    compiled for another one (`-march=native`) may stop at an instruction that this one lacks.
    """
    return {
        "torch": f"{torch.__version__} ({torch.version.git_version})",
        "Python": platform.python_version(),
        "processor": processor(),
    }


def processor() -> str:
    """Name the kind of vector instructions, and a digest of the processor's model and of all that it can do."""
    known = [platform.system(), platform.machine(), platform.processor()]
    try:
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        known += [line for line in first.splitlines() if line.startswith(_CPU)]
    except OSError:  # not Linux
        pass
    digest = sha256("\n".join(known).encode()).hexdigest()
    return f"{torch.backends.cpu.get_cpu_capability()} {digest[:16]}"
