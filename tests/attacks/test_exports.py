"""What cannot be saved is said, in the user's words."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import InvalidGraph, Unsupported


class Rotating(nn.Module):
    """A table of complex numbers in double precision, which safetensors does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.register_buffer("table", torch.ones(4, dtype=torch.complex128))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.table.real


def test_a_dtype_that_safetensors_does_not_have(tmp_path: Path) -> None:
    program = lyc_fx.capture(Rotating(), (torch.randn(2, 4),))
    with pytest.raises(Unsupported, match=r"table is torch\.complex128, which a safetensors file cannot hold"):
        lyc_fx.export(program, tmp_path / "out.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2"])
def test_weights_without_values(suffix: str, tmp_path: Path) -> None:
    program = lyc_fx.capture(nn.Linear(4, 4, device="meta"), (torch.randn(2, 4, device="meta"),))
    with pytest.raises(InvalidGraph, match="weight has no values yet"):
        lyc_fx.export(program, tmp_path / f"out{suffix}")
    assert list(tmp_path.iterdir()) == []


def test_a_module_is_no_program(tmp_path: Path) -> None:
    with pytest.raises(InvalidGraph, match="takes a captured program, not Linear"):
        lyc_fx.export(nn.Linear(2, 2), tmp_path / "out.pt2")  # type: ignore[arg-type]
