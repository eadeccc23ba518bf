"""The effects of a fold on the weights of each shard, in files beside the shards until all are finished.

So every rank, and a run that resumes an interrupted one, knows those that others have measured.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from lyc_fx.merging.effect import Effect
from lyc_fx.merging.kept import Kept
from lyc_fx.storage.files import replacing


def _place(work: Path, index: int) -> Path:
    return work / f".{index}.effects"


def save_effects(work: Path, index: int, effects: Mapping[str, Effect]) -> None:
    """Write the effects on the weights of the shard of this number. Raises BadFile where that cannot be written."""
    with replacing(_place(work, index)) as file:
        file.write_text(json.dumps({name: asdict(effect) for name, effect in effects.items()}), "utf-8")


def load_effects(work: Path, count: int) -> dict[str, Effect]:
    """Read the effects of all shards, of which there are `count`."""
    found: dict[str, Effect] = {}
    for place in (_place(work, index) for index in range(count)):
        entries = json.loads(place.read_text("utf-8")).items()
        found |= {name: Effect(**(entry | {"kept": Kept(**entry["kept"])})) for name, entry in entries}
    return found


def remove_effects(work: Path, count: int) -> None:
    """Remove the files, before the folder becomes the output."""
    for index in range(count):
        _place(work, index).unlink()
