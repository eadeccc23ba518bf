"""What the metadata of a merged checkpoint says of its adapters: `lyc_fx.fold`, a list with an entry for each fold."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import lyc_fx
from lyc_fx.families import Convention
from lyc_fx.outputs import FOLD
from lyc_fx.stack import Stack


@final
@dataclass(frozen=True)
class Provenance:
    """Of one fold."""

    entry: Mapping[str, Any]

    @classmethod
    def of(cls, stack: Stack, convention: Convention) -> Self:
        """Names, contents and strengths of a stack's adapters, in the order in which they are summed."""
        folded = [
            {
                "file": Path(part.adapters.source).name,
                "sha256": part.adapters.digest,
                "strength": part.strength,
                **({"blocks": [dict(each) for each in part.blocks]} if part.blocks else {}),
            }
            for part in (stack.parts[i] for i in stack.order())
        ]
        made = {"convention": convention, "sequential": stack.sequential, "version": lyc_fx.__version__}
        return cls({"adapters": folded, **made})

    def added_to(self, metadata: Mapping[str, str]) -> dict[str, str]:
        """A file's metadata with this fold after the ones before it."""
        return {**metadata, FOLD: json.dumps([*_before(metadata), self.entry], sort_keys=True)}

    def repeated(self, metadata: Mapping[str, str]) -> list[str]:
        """A note for each adapter that the file already has in it."""
        before = {
            adapter["sha256"]: adapter
            for entry in _before(metadata)
            for adapter in entry.get("adapters", ())
            if isinstance(adapter, dict) and "sha256" in adapter
        }
        found = ((new, before[new["sha256"]]) for new in self.entry["adapters"] if new["sha256"] in before)
        return [
            f"{new['file']} was folded into this base before (as {old.get('file')}, strength {old.get('strength')}): "
            "its effect is in it twice now"
            for new, old in found
        ]


def _before(metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """The entries of earlier folds; a single one is no list in files of version 0.1.0."""
    try:
        found = json.loads(metadata.get(FOLD, "[]"))
    except ValueError:
        return []
    entries = found if isinstance(found, list) else [found]
    return [entry for entry in entries if isinstance(entry, dict)]
