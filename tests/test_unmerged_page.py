"""The page on running unmerged is true: its Python runs, and computes what a merge does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lyc_fx

PAGE = (Path(__file__).parents[1] / "docs" / "unmerged.md").read_text()


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    one, two = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    exec(one, names)
    plain = names["model"](names["x"])
    with lyc_fx.live(names["model"]) as live:
        live.set([(names["style"], 0.8 - 0.6), (names["detail"], 0.6)])
        torch.testing.assert_close(names["after"], names["model"](names["x"]), rtol=1e-4, atol=1e-4)
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
