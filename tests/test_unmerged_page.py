"""The page on running unmerged is true: its Python runs, and computes what a merge does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from quantizers import package

import lyc_fx

PAGE = (Path(__file__).parents[1] / "docs" / "unmerged.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    one, _, _, two = BLOCKS
    torch.manual_seed(0)
    exec(one, names)
    plain = names["model"](names["x"])
    with lyc_fx.live(names["model"]) as live:
        live.set([(names["style"], 0.8 - 0.6), (names["detail"], 0.6)])
        torch.testing.assert_close(names["after"], names["model"](names["x"]), rtol=1e-4, atol=1e-4)
        live.set([(names["detail"], 0.9)])
        torch.testing.assert_close(names["turn"], names["model"](names["x"]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(names["model"](names["x"]), plain, rtol=0, atol=0)
    exec(two, names)
    assert "resident" in capsys.readouterr().out
    for given, strength, found in (("style", 0.8, "before"), ("other", -0.5, "after")):
        with lyc_fx.live(names["model"]) as live:
            live.set(lyc_fx.load(names[given]) if given == "other" else names[given], strength)
            torch.testing.assert_close(names[found], names["model"](names["x"]), rtol=1e-4, atol=1e-4)
    with lyc_fx.live(names["model"]) as live:
        live.set(lyc_fx.load(names["other"]), 0.25)
        torch.testing.assert_close(names["fast"](names["x"]), names["model"](names["x"]), rtol=1e-4, atol=1e-4)


def test_its_python_on_a_batch_runs() -> None:
    one, batch, *_ = BLOCKS
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(one, names)
    exec(batch, names)
    model, x, tokens = names["model"], names["x"], names["tokens"]
    plain, wanted = model(x), {}
    for name, strength in (("style", 0.8), ("detail", 1.0)):
        with lyc_fx.live(model) as live:
            live.set(names[name], strength)
            wanted[name] = model(x)
    torch.testing.assert_close(names["mixed"][1:3], wanted["style"][1:3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(names["mixed"][[0, 3, 4]], plain[[0, 3, 4]], rtol=1e-4, atol=1e-4)
    with lyc_fx.live(model) as live:
        live.set([(names["style"], 0.8), (names["detail"], 0.5)])
        torch.testing.assert_close(names["blended"][:, 6], model(tokens)[:, 6], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_its_python_on_quantized_models_runs(capsys: pytest.CaptureFixture[str]) -> None:
    package("torchao.quantization")
    one, _, quantized, _ = BLOCKS
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(one, names)
    exec(quantized, names)
    share = float(re.findall(r"'0\.weight': (\d\.\d+)", capsys.readouterr().out)[0])
    assert 0.98 < share < 1.02
    torch.testing.assert_close(names["merged"], names["beside"], rtol=0.1, atol=0.1)
