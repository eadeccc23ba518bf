"""Importing a quantizer's package, which warns of what it lacks, or skipping the tests that need it."""

import warnings
from types import ModuleType

import pytest


def package(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)
