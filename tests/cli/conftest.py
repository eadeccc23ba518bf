"""A small checkpoint, adapters for it, and the command line in this process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

from lyc_fx.cli import app


@final
@dataclass(frozen=True)
class Files:
    """What a test works on; `base` and the adapters are inputs."""

    folder: Path
    base: Path
    locon: Path
    lokr: Path
    out: Path

    def held(self) -> dict[str, bytes]:
        """Every file below the folder with its bytes."""
        return {str(f.relative_to(self.folder)): f.read_bytes() for f in self.folder.rglob("*") if f.is_file()}


@final
@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


def weights() -> dict[str, Tensor]:
    """A linear layer, a convolution in bfloat16, and tensors that no adapter may touch."""
    rng = torch.Generator().manual_seed(0)
    return {
        "fc.weight": torch.randn(6, 4, generator=rng),
        "fc.bias": torch.randn(6, generator=rng),
        "block.0.conv.weight": torch.randn(8, 4, 3, 3, generator=rng).bfloat16(),
        "steps": torch.tensor(7),
    }


def locon_factors() -> dict[str, Tensor]:
    """LoCon on both layers; alpha / rank is 0.5 on `fc` and 2 on the convolution."""
    rng = torch.Generator().manual_seed(1)
    return {
        "lycoris_fc.lora_up.weight": torch.randn(6, 2, generator=rng),
        "lycoris_fc.lora_down.weight": torch.randn(2, 4, generator=rng),
        "lycoris_fc.alpha": torch.tensor(1.0),
        "lycoris_block_0_conv.lora_up.weight": torch.randn(8, 1, 1, 1, generator=rng),
        "lycoris_block_0_conv.lora_down.weight": torch.randn(1, 4, 3, 3, generator=rng),
        "lycoris_block_0_conv.alpha": torch.tensor(2.0),
    }


def lokr_factors() -> dict[str, Tensor]:
    """LoKr on `fc` alone, both factors full."""
    rng = torch.Generator().manual_seed(2)
    return {
        "lycoris_fc.lokr_w1": torch.randn(2, 2, generator=rng),
        "lycoris_fc.lokr_w2": torch.randn(3, 2, generator=rng),
        "lycoris_fc.alpha": torch.tensor(1.0),
    }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    made = Files(tmp_path, *(tmp_path / f"{name}.safetensors" for name in ("base", "locon", "lokr", "out")))
    save_file(weights(), made.base, metadata={"format": "pt", "made_by": "a test"})
    save_file(locon_factors(), made.locon, metadata={"ss_network_dim": "2", "ss_tags": "x" * 300})
    save_file(lokr_factors(), made.lokr)
    return made


@pytest.fixture
def lyc() -> Run:
    """`lyc-fx …` in this process. Fails the test where an error gets past the command line."""

    def run(*arguments: object) -> Said:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], prog_name="lyc-fx")
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert "Traceback" not in result.output
        return Said(result.exit_code, result.stdout, result.stderr)

    return run
