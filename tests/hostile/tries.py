"""One try: a file made from a seed and a number alone, what was done with it, and what that took."""

import random
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, final

from hostile import attacks, kinds, memory, saying, valid
from hostile.draft import Draft
from hostile.victim import Victim

ATTACKS: dict[str, attacks.Attack] = {
    "random bytes": attacks.random_bytes,
    "flipped bytes": attacks.flipped_bytes,
    "cut or appended": attacks.cut,
    "header length": attacks.header_length,
    "header structure": attacks.structure,
    "duplicate keys": attacks.duplicate_keys,
    "offsets": attacks.offsets,
    "shapes": attacks.shapes,
    "dtypes": attacks.dtypes,
    "values": attacks.values,
    "names": attacks.names,
    "alpha": attacks.alpha,
    "metadata": saying.metadata,
    "PEFT configuration": saying.configuration,
    "sparse residual": saying.residual,
}
PAIR, KIND, LARGE, NONE = "two of these", "no such file", "megabytes", "nothing spoilt"
_SLOWEST = 20.0
"""Seconds for one try"""


@final
@dataclass(frozen=True)
class Outcome:
    """How one try ended."""

    number: int
    attack: str
    end: str
    """`used`, or one of our error types; "" for a fault"""
    fault: str
    """A foreign exception, memory, time, or code that was run; "" where all is well"""
    size: int
    """Bytes of the input"""
    extra: int
    """Bytes of memory, as `hostile.memory` measures them"""
    seconds: float


@final
@dataclass(frozen=True)
class Tries:
    """All that the tries share."""

    seed: int
    folder: Path
    victim: Victim
    drafts: tuple[Draft, ...]
    bases: tuple[Draft, ...]

    @classmethod
    @contextmanager
    def prepared(cls, seed: int) -> Iterator[Self]:
        """In a temporary folder, with every path taken once, so that what is loaded late is loaded."""
        warnings.simplefilter("ignore")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            drafts = tuple(valid.adapters(seed))
            made = cls(seed, folder, Victim.prepared(folder, drafts), drafts, (valid.checkpoint(),))
            for number in range(len(drafts)):
                made._run(random.Random(number), number, NONE)
            yield made

    def run(self, number: int) -> Outcome:
        """The try of this number: the same file and the same steps each time."""
        rng = random.Random(f"{self.seed}/{number}")
        if rng.random() < 1 / 400:
            return self._run(rng, number, LARGE)
        return self._run(rng, number, rng.choice([*ATTACKS, PAIR, PAIR, KIND, NONE]))

    def _run(self, rng: random.Random, number: int, attack: str) -> Outcome:
        place, as_base = self.folder / "try", rng.random() < 0.2
        place.mkdir()
        draft = rng.choice(self._fitting(attack, as_base))
        path = self._spoilt(rng, draft, attack, place / "x")
        size = sum(p.stat().st_size for p in (place / "x").iterdir() if p.is_file() and not p.is_symlink())
        end, fault, before, started = "", "", memory.start(), time.perf_counter()
        try:
            use = self.victim.as_base if as_base else self.victim.as_adapter
            end = use(rng, path)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a panic in Rust is no Exception
            where = "".join(traceback.format_tb(error.__traceback__))[-1200:]
            fault = f"{type(error).__name__}: {str(error)[:300]}\n{where}"
        seconds, extra = time.perf_counter() - started, memory.extra(before)
        if not fault and extra > memory.FIXED + memory.FACTOR * size:
            fault = f"memory: {extra} bytes for a file of {size}"
        if not fault and seconds > _SLOWEST:
            fault = f"time: {seconds:.0f} seconds"
        if (place / kinds.MARK).exists():
            fault = f"the file's code was run {fault}"
        shutil.rmtree(place)
        return Outcome(number, attack, "" if fault else end, fault, size, extra, seconds)

    def _fitting(self, attack: str, as_base: bool) -> Sequence[Draft]:
        """Drafts of which an attack finds what it spoils."""
        if as_base:
            return self.bases
        if attack == "PEFT configuration":
            return [draft for draft in self.drafts if draft.config is not None]
        if attack == "metadata":
            return [draft for draft in self.drafts if "lora_adapter_metadata" in str(draft.header)]
        return self.drafts

    def _spoilt(self, rng: random.Random, draft: Draft, attack: str, folder: Path) -> Path:
        if attack == KIND:
            return kinds.placed(rng, draft, folder)
        if attack == PAIR:
            second = rng.choice([name for name in ATTACKS if name != "sparse residual"])
            draft = ATTACKS[rng.choice(["names", "values", "PEFT configuration", "dtypes"])](rng, draft)
            return self._spoilt(rng, draft, second, folder)
        spoil = {**ATTACKS, LARGE: saying.large, NONE: lambda _, same: same}[attack]
        return spoil(rng, draft).written(folder)
