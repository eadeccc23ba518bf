"""What JSON beside or inside an adapter file says, read with bounds: nobody vouches for such a file.

Whatever the text holds, the outcome is a value of the type that was asked for, or an error of lyc-fx.
"""

import json
from collections.abc import Mapping
from math import isfinite
from typing import Any

from lyc_fx.errors import BadAdapter, BadFile

LARGEST = 4 * 2**20
"""Bytes of a configuration. Python's objects need some thirty times the size of their JSON."""
_SHOWN = 60


def configuration(text: str | bytes, name: str) -> dict[str, Any]:
    """A JSON object. Raises BadFile for what is none, is too long, or is nested too deeply."""
    if len(text) > LARGEST:
        raise BadFile(f"{name}: a configuration of more than {LARGEST} bytes is not read")
    try:
        read = json.loads(text)
    except (ValueError, RecursionError) as error:  # of Unicode and of the digits of an integer, too
        raise BadFile(f"{name}: is not readable JSON: {error}") from error
    if not isinstance(read, dict):
        raise BadFile(f"{name}: holds no configuration")
    return read


def real(value: object, what: str) -> float:
    """A finite number of a configuration. Raises BadAdapter for anything else, a text of digits included."""
    try:
        found = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    except OverflowError:  # an integer may have thousands of digits
        found = None
    if found is None or not isfinite(found):
        raise BadAdapter(f"{what} is {shown(value)}, which is no finite number")
    return found


def table(value: object, what: str) -> Mapping[str, Any]:
    """An object inside a configuration; none is an empty one. Raises BadAdapter for anything else."""
    if value is None or isinstance(value, Mapping):
        return value or {}
    raise BadAdapter(f"{what} is {shown(value)}, which is no table")


def shown(value: object) -> str:
    """A value as messages show it: short, and printable."""
    try:
        text = ascii(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        return f"some {type(value).__name__}"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
