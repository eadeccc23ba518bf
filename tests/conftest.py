"""Shared helpers are plain modules beside this file. What is set here saves the suite a seventh of its time."""

import gc
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
gc.set_threshold(10_000, 20, 20)  # imports and traces make many objects, and hardly any cycles among them

for _device in (torch.cuda, torch.xpu, torch.mtia):
    if not _device.is_available():
        # torch.manual_seed would format a stack trace for it, which takes far longer than to seed
        _device.manual_seed_all = lambda seed: None


def pytest_collection_finish() -> None:
    """What is imported by now stays, and need not be looked through for garbage again and again."""
    gc.collect()
    gc.freeze()
