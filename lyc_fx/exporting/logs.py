"""Keeping what torch logs about packages that are not installed, and about its own progress, from the user."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Show errors alone of what torch logs."""
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.ERROR)
    inner = [logging.getLogger(name) for name in ("torch.onnx", "torch._inductor", "torch.export")]
    levels = [each.level for each in inner]
    for each in inner:
        each.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
        for each, level in zip(inner, levels, strict=True):
            each.setLevel(level)
