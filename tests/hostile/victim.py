"""What a user does with a file that is hostile, and how it ends."""

import random
import re
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import torch
from typer.testing import CliRunner

import lyc_fx
from hostile import valid
from hostile.draft import Draft
from lyc_fx.cli import app
from lyc_fx.errors import BadAdapter, LycFxError


class Foreign(Exception):
    """The command line let an error through."""


@final
@dataclass(frozen=True)
class Victim:
    """A small model, its checkpoint, and good adapters."""

    base: Path
    good: tuple[Path, ...]
    out: Path
    weights: dict[str, torch.Tensor] = field(default_factory=lambda: valid.model().state_dict())
    """Of the model, before anything"""

    @classmethod
    def prepared(cls, folder: Path, drafts: Sequence[Draft]) -> "Victim":
        base = valid.checkpoint().written(folder / "base")
        good = tuple(draft.written(folder / f"good{i}") for i, draft in enumerate(drafts))
        return cls(base, good, folder / "out.safetensors")

    def as_adapter(self, rng: random.Random, path: Path) -> str:
        """Load a file and use it on the roads that need no capture. Says how it ended; raises what is not ours."""
        try:
            adapters = lyc_fx.load(path)
        except LycFxError as error:
            self._at_the_command_line(rng, path)
            return _name(error)
        assert adapters.digest == adapters.select("*").digest
        str(adapters.exclude("lora_*", re.compile("unet.*")).unread)
        end, model, strict = "used", valid.model(), rng.random() < 0.5
        try:
            str(lyc_fx.merge(model, adapters, rng.choice([1.0, 0.5, 0.0, -1e30]), strict=strict))
        except LycFxError as error:
            end = f"{_name(error)} on use"
            assert all(torch.equal(t, self.weights[n]) for n, t in model.state_dict().items())
        if rng.random() < 0.1:
            end = self._fold(rng, self.base, [(adapters, 0.5)] * rng.choice([1, 2]), end)
        self._at_the_command_line(rng, path)
        return end

    def as_base(self, rng: random.Random, path: Path) -> str:
        """Fold a good adapter, or the file itself, into the file."""
        try:
            adapters = lyc_fx.load(path if rng.random() < 0.2 else rng.choice(self.good))
        except LycFxError as error:
            return _name(error)
        return self._fold(rng, path, [(adapters, 1.0)], "used")

    def _fold(self, rng: random.Random, base: Path, stack: list[tuple[lyc_fx.AdapterSet, float]], end: str) -> str:
        patterns = rng.choice([(), (), ("*",), ("fc.*",)])
        try:
            lyc_fx.fold_checkpoint(base, stack, self.out, strict=rng.random() < 0.5, transposed=patterns)
        except LycFxError as error:
            assert not self.out.exists()
            return f"{_name(error)} on use"
        self._remove_output()
        return end

    def _remove_output(self) -> None:
        """A file, or for a base that is a directory a new one."""
        if self.out.is_dir():
            shutil.rmtree(self.out)
        self.out.unlink(missing_ok=True)

    def _at_the_command_line(self, rng: random.Random, path: Path) -> None:
        if rng.random() > 0.05:
            return
        fold = ["fold", str(self.base), str(path), "-o", str(self.out), *rng.choice([[], ["--no-strict"], ["--json"]])]
        also = [["coverage", str(self.base), str(path)], ["coverage", str(path), str(self.base)]]
        given = rng.choice([*also, ["inspect", str(path)], ["inspect", "--json", str(path)], fold])
        with warnings.catch_warnings():
            result = CliRunner().invoke(app, given, prog_name="lyc-fx")
        self._remove_output()
        if not (result.exception is None or isinstance(result.exception, SystemExit)):
            raise Foreign(f"{given[0]}: {result.exception!r}") from result.exception
        if result.exit_code not in (0, 1, 2) or "Traceback" in result.output:
            raise Foreign(f"{given}: {result.output[:500]}")


def _name(error: LycFxError) -> str:
    return "BadAdapter" if isinstance(error, BadAdapter) else type(error).__name__
