"""The metadata entry `lyc_fx.fold` of a merged checkpoint: a JSON list that describes each fold into it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, final

import lyc_fx
from lyc_fx.binding.stack import Stack
from lyc_fx.choices import Convention
from lyc_fx.storage.may_overwrite import FOLD


@final
@dataclass(frozen=True)
class Provenance:
    """The description of one fold."""

    entry: Mapping[str, Any]

    @classmethod
    def of(cls, stack: Stack, convention: Convention) -> Self:
        """Describe a stack: `Stack.described`, and how it is folded."""
        made = {"convention": convention, "sequential": stack.sequential, "version": lyc_fx.__version__}
        return cls({"adapters": stack.described(), **made})

    def add_to(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """Return a file's metadata with this fold appended to the earlier ones."""
        return {**metadata, FOLD: json.dumps([*_before(metadata), self.entry], sort_keys=True)}

    def find_repeated(self, metadata: Mapping[str, str]) -> list[str]:
        """Return a note for each adapter that was already folded into the file."""
        before = {
            adapter["sha256"]: adapter
            for entry in _before(metadata)
            for adapter in entry.get("adapters", ())
            if isinstance(adapter, dict) and "sha256" in adapter
        }
        found = ((new, before[new["sha256"]]) for new in self.entry["adapters"] if new["sha256"] in before)
        return [
            f"{new['file']} was already folded into this base (as {old.get('file')}, strength {old.get('strength')}): "
            "the output now has its effect twice"
            for new, old in found
        ]


def _before(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the entries of earlier folds. Files of version 0.1.0 may hold one entry instead of a list."""
    try:
        found = json.loads(metadata.get(FOLD, "[]"))
    except ValueError:
        return []
    entries = found if isinstance(found, list) else [found]
    return [entry for entry in entries if isinstance(entry, dict)]
