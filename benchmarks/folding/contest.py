"""The contestants, and the order in which they run."""

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from folding import adapters, rounding
from folding.rounding import Check
from folding.running import Run, run

COPY, OURS, LYCORIS, PEFT = "cp + fsync", "lyc-fx", "LyCORIS", "PEFT"
Say = Callable[[str], None]


@dataclass
class Result:
    """All runs of one contestant with one adapter."""

    runs: list[Run] = field(default_factory=list)
    check: Check | None = None
    skipped: str = ""

    @property
    def error(self) -> str:
        return self.skipped or next((each.error for each in self.runs if each.error), "")

    @property
    def wall(self) -> float | None:
        return None if self.error or not self.runs else median(each.wall for each in self.runs)

    @property
    def seconds(self) -> float | None:
        known = [each.seconds for each in self.runs if each.seconds is not None]
        return median(known) if known and not self.error else None

    @property
    def anonymous(self) -> int:
        return max((each.anonymous for each in self.runs), default=0)


Results = dict[str, dict[str, Result]]
"""Adapter → contestant → result"""


@dataclass(frozen=True)
class Contest:
    folder: Path
    size: str
    kinds: list[str]
    rounds: int
    peer_rounds: int
    rows: int

    @property
    def base(self) -> Path:
        return self.folder / f"{self.size}.safetensors"

    def adapter(self, kind: str) -> Path:
        return self.folder / f"{self.size}-{kind}.safetensors"

    def prepare(self, say: Say) -> dict[str, str]:
        """Make every adapter; for each that PEFT cannot hold, why."""
        refused = {}
        for kind in self.kinds:
            count = adapters.write(self.adapter(kind), self.base, self.size, kind)
            say(f"{adapters.TITLES[kind]}: {count} layers, {self.adapter(kind).stat().st_size / 1e6:.0f} MB")
            if self.peer_rounds and (why := adapters.for_peft(self.adapter(kind), self._peft(kind), self.base)):
                refused[kind] = why
        return refused

    def hold(self, refused: dict[str, str], say: Say) -> Results:
        """Round by round, adapter by adapter, so that copies are spread over the whole time."""
        results: Results = {kind: defaultdict(Result) for kind in self.kinds}
        for turn in range(max(self.rounds, self.peer_rounds)):
            for kind in self.kinds:
                for who in (COPY, OURS, LYCORIS, PEFT):
                    result = results[kind][who]
                    if who == PEFT and kind in refused:
                        result.skipped = refused[kind]
                    if turn < (self.peer_rounds if who in (LYCORIS, PEFT) else self.rounds) and not result.error:
                        self._run(kind, who, result)
                        say(f"round {turn + 1}: {kind}, {who}: {result.error or f'{result.runs[-1].wall:.2f} s'}")
        return results

    def _run(self, kind: str, who: str, result: Result) -> None:
        out = self.folder / "out.safetensors"
        command = self._command(kind, who, out)
        done = run(command, out, [self.base, self._peft(kind) if who == PEFT else self.adapter(kind)])
        result.runs.append(done)
        if done.error is None and who != COPY and result.check is None:
            result.check = rounding.check(self.base, self.adapter(kind), out, self.rows)
        out.unlink(missing_ok=True)

    def _command(self, kind: str, who: str, out: Path) -> list[str]:
        if who == COPY:  # not a clone, which a file system such as XFS makes in no time
            return ["cp", "--reflink=never", str(self.base), str(out)]
        if who == OURS:
            fold = ["-m", "lyc_fx", "fold", str(self.base), str(self.adapter(kind)), "-o", str(out), "--json"]
            return [sys.executable, *fold]
        adapter = self._peft(kind) if who == PEFT else self.adapter(kind)
        files = [str(self.base), str(adapter), str(out)]
        return [sys.executable, "-m", "folding.peers", who, *files, "--size", self.size, "--kind", kind]

    def _peft(self, kind: str) -> Path:
        return self.folder / f"{self.size}-{kind}-peft"
