"""What inductor writes for a GPU, as `benchmarks/gpu_code.py` counts it: these figures do not vary.

A figure that changes says that lowered programs have become better or worse on a GPU:
docs/benchmarks.md has it too.
"""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent

if find_spec("triton") is None:
    pytest.skip("needs triton, which compiles the kernels: pip install '.[gpu-code]'", allow_module_level=True)
if not torch.__version__.startswith("2.13."):
    pytest.skip(f"the figures are those of inductor in torch 2.13, not {torch.__version__}", allow_module_level=True)


@cache
def rows() -> dict[tuple[str, str, str], dict[str, Any]]:
    """In a process of its own, which the stand-in for a device spoils for everything else."""
    layers, algorithms = ("linear", "conv-nhwc"), ("LoCon", "LoKr", "DoRA", "BOFT")
    forms = ("spliced", "lowered", "staged")
    chosen = ["--layers", *layers, "--algorithms", *algorithms, "--forms", *forms, "--json"]
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_code.py"), *chosen],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
    )
    assert not made.returncode, made.stderr
    return {(row["layers"], row["algorithm"], row["form"]): row for row in json.loads(made.stdout)}


def test_base() -> None:
    """Two Linear layers are two GEMMs; GELU is the only kernel, and writes over the first one's output."""
    row = rows()["linear", "base", ""]
    assert list(row["figures"].values()) == [1, 2, 0, 2 * 512 * (1024 + 256), 2 * 512 * (1024 + 1024 + 256)]
    assert sorted(row["calls"]) == ["addmm", "triton_poi_fused_gelu_view_0"]


@pytest.mark.parametrize(
    ("case", "kernels", "gemms"),
    [
        (("linear", "LoCon", "lowered"), 3, 4),  # two kernels scale a factor each; the third adds, where no GELU does
        (("linear", "LoKr", "lowered"), 3, 4),
        (("linear", "DoRA", "spliced"), 6, 2),
        (("linear", "DoRA", "lowered"), 9, 10),
        (
            ("conv-nhwc", "LoCon", "lowered"),
            2,
            4,
        ),  # these scale the first factor in the layout of the base's weight
        (("conv-nhwc", "LoKr", "lowered"), 2, 4),  # and here the repeated right factor
        (("linear", "LoCon", "staged"), 1, 4),
        (("linear", "LoKr", "staged"), 1, 4),
        (("linear", "DoRA", "staged"), 1, 4),
        (("linear", "BOFT", "staged"), 4, 5),
        (("conv-nhwc", "LoCon", "staged"), 0, 4),
        (("conv-nhwc", "LoKr", "staged"), 0, 4),
        (("conv-nhwc", "DoRA", "staged"), 0, 4),
        (("conv-nhwc", "BOFT", "staged"), 2, 3),
    ],
)
def test_over_the_base(case: tuple[str, str, str], kernels: int, gemms: int) -> None:
    figures = rows()[case]["figures"]
    assert (figures["fused kernels"], figures["GEMMs"], figures["other calls"]) == (kernels, gemms, 0)


def test_bytes() -> None:
    """A low-rank chain has the scaled factor, the narrow activation and the product that is added to the layer's."""
    rank, wide, narrow, tokens = 16, 1024, 256, 512
    factors = rank * (narrow + wide)
    activations = tokens * (rank + wide) + tokens * (rank + narrow)
    assert rows()["linear", "LoCon", "lowered"]["figures"]["bytes allocated"] == 2 * (factors + activations)


def test_cubins() -> None:
    """Each kernel that is launched was compiled."""
    for row in rows().values():
        launched = {name for name in row["calls"] if name.startswith("triton_")}
        assert launched == set(row["cubins"])
        assert all(row["cubins"].values())
