"""Every script in examples/ runs, and prints what it is there to show."""

import re
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"

SHOWN: dict[str, list[str]] = {
    "01_merge_live.py": [
        r"0\.weight +16×3×3×3 +loha +2 +1 +0\.5 +0\.8",
        r"3\.weight +10×1024 +locon +4 +4 +1 +0\.8",
        r"the output moved by up to (?!0\.000)\d",
        r"restored, to the bit: True",
    ],
    "02_fold_checkpoint.py": [
        r"proj\.weight +64×32 +lokr full w1, low-rank w2 +2 +1 +0\.5 +0\.5",
        r"same keys, shapes and dtypes: True",
        r"equal to the formula, rounded once: True",
        r"bias untouched: True",
    ],
    "03_graph.py": [
        r"--- captured\n.*\n.*aten\.linear\(\w+, 0\.weight, 0\.bias\)",
        r"--- spliced\n(.*\n)*.*aten\.matmul\(",
        r"--- lowered\n(.*\n)*.*aten\.mul\.Tensor\(lyc_fx\.0\.0\.weight\.down, \w+\)\n.*aten\.linear\(\w+, \w+\)\n",
        r"--- folded\n.*\n.*aten\.linear\(\w+, 0\.weight, 0\.bias\)",
        r"compiled: differs by (0\.0e\+00|\d\.\de-0[6-9])",
        r"loaded from \.pt2: differs by (0\.0e\+00|\d\.\de-0[6-9])",
        r"the model with the saved weights: differs by (0\.0e\+00|\d\.\de-0[6-9])",
    ],
    "04_train_factors.py": [
        r"training 4 factors: lyc_fx\.0\.0\.weight\.up",
        r"base weights unchanged: True",
        r"folded after training: differs by (0\.0e\+00|\d\.\de-0[6-9])",
    ],
    "05_several_adapters.py": [
        r"strengths: 0\.7, -0\.3",
        r"compiled 1 time\(s\) for three choices of strengths",
        *(f"{what}: differs from the merged model by (0\\.0e\\+00|\\d\\.\\de-0[6-9])" for what in ("both", "none")),
        r"the first alone: differs from the merged model by (0\.0e\+00|\d\.\de-0[6-9])",
    ],
    "06_swap.py": [
        r"1 set\(s\), 2 adapters: the output moved by up to (?!0\.000)\d",
        r"2 set\(s\), 4 adapters: the output moved by up to (?!0\.000)\d",
        r"restored, to the bit: True",
        r"compiled 1 time\(s\)",
    ],
    "07_export.py": [
        r"without an adapter: differs by 0\.0e\+00",
        r"LoRA of rank 9: differs from the merged model by (0\.0e\+00|\d\.\de-0[6-9])",
        r"LoHa: differs from the merged model by (0\.0e\+00|\d\.\de-0[6-9])",
        r"samples moved by up to 0\.000, 0\.[1-9]\d*, 0\.0[1-9]",
    ],
}


def test_every_example_is_listed() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(SHOWN)


@pytest.mark.parametrize("name", SHOWN)
def test_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    torch.compiler.reset()
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    for pattern in SHOWN[name]:
        assert re.search(rf"^{pattern}", printed, re.MULTILINE), pattern


def test_training_lowers_the_loss(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(EXAMPLES / "04_train_factors.py"), run_name="__main__")
    found = re.search(r"loss ([\d.]+) → ([\d.]+)", capsys.readouterr().out)
    assert found is not None
    assert float(found[2]) < 0.7 * float(found[1])
