"""The command line on several ranks, forked from one process that has imported all; torchrun imports it in each.

python tests/ranks.py COUNT ARGUMENT… → `lyc-fx ARGUMENT…` on each rank; ends with 1 if one of them fails
"""

import os
import socket
import sys

import torch.distributed

import lyc_fx.checkpoint.fold_checkpoint  # what the command imports when it runs
from lyc_fx.cli import main


def forked(rank: int, settings: dict[str, str]) -> int:
    """The process of a rank."""
    if (process := os.fork()) == 0:
        os.environ |= settings | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        main()
        raise SystemExit
    return process


if __name__ == "__main__":
    assert torch.distributed.is_gloo_available() and lyc_fx.checkpoint.fold_checkpoint
    count = int(sys.argv.pop(1))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    processes = [forked(rank, address | {"WORLD_SIZE": str(count)}) for rank in range(count)]
    raise SystemExit(any([os.waitpid(process, 0)[1] for process in processes]))
