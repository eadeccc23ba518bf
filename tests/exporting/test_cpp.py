"""A package with slots: run from C++ with one adapter after the other, and at other strengths, as from Python."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lora, merged
from safetensors.torch import save_file
from torch import Tensor

import lyc_fx

pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="needs a C++ compiler")
BUILD = Path(__file__).parents[2] / "examples" / "cpp" / "build.py"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("slots") / "slots.aoti.pt2"
    lyc_fx.export(lyc_fx.slots(lyc_fx.splice(captured(), lora(3, 2.0), 0.7, rank=4)), found, check=False)
    return found


def test_another_strength_is_not_in_the_code(path: Path) -> None:
    artefact = lyc_fx.bind(path)
    x, scale = inputs()
    for adapters in (lora(2, 3.0, seed=9), loha(2, 1.5)):
        artefact.set(adapters, 0.7)
        assert apart(artefact(x, scale=scale), merged(adapters, 0.7)) < 2e-6
        for strength in (0.2, -1.25):
            artefact.strengths = [strength]
            assert apart(artefact(x, scale=scale), merged(adapters, strength)) < 2e-6
            assert apart(artefact(x, scale=scale), merged(adapters, 0.7)) > 1e-2


def test_ranks_up_to_that_of_the_slots(path: Path) -> None:
    artefact = lyc_fx.bind(path)
    x, scale = inputs(5)
    for rank in (1, 2, 3, 4):
        artefact.set(lora(rank, 3.0, seed=9), 0.7)
        assert apart(artefact(x, scale=scale), merged(lora(rank, 3.0, seed=9), 0.7, 5)) < 2e-6
    with pytest.raises(lyc_fx.BadAdapter, match="it takes rank 5, and there is room for 4"):
        artefact.set(lora(5, 3.0))
    assert apart(artefact(x, scale=scale), merged(lora(4, 3.0, seed=9), 0.7, 5)) < 2e-6


def test_swapping_from_cpp(path: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, BUILD, tmp_path / "swap"], check=True)
    x, scale = inputs(3)
    save_file({"x": x, "scale": scale}, tmp_path / "inputs.safetensors")
    chosen = [(lora(2, 3.0, seed=9), 0.6), (loha(2, 1.5), -0.75), (lora(4, 3.0, seed=9), 1.5)]
    for at, (adapters, _) in enumerate(chosen):
        lyc_fx.pack(adapters, path, tmp_path / f"{at}.safetensors")
    given = [each for at, (_, s) in enumerate(chosen) for each in (tmp_path / f"{at}.safetensors", str(s))]
    command = [tmp_path / "swap", path, tmp_path / "inputs.safetensors", *given]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = torch.tensor([float(line) for line in printed.split()])
    for adapters, strength in chosen:
        wanted = merged(adapters, strength, 3)
        sizes = [tensor.numel() for tensor in wanted]
        results, found = found[: sum(sizes)].split(sizes), found[sum(sizes) :]
        assert apart(shaped(results, wanted), wanted) < 2e-6
    assert not found.numel()


def shaped(flat: tuple[Tensor, ...], like: list[Tensor]) -> list[Tensor]:
    return [values.reshape(tensor.shape) for values, tensor in zip(flat, like, strict=True)]
