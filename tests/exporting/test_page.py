"""The page on exporting is true: its Python runs, and computes what a merge does."""

import re
from pathlib import Path
from typing import Any

import torch

import lyc_fx

PAGE = (Path(__file__).parents[2] / "docs" / "export.md").read_text()


def test_its_python_runs() -> None:
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        exec(block, names)
    model, x, style, other = (names[name] for name in ("model", "x", "style", "other"))
    plain = model(x)
    with lyc_fx.live(model) as live:
        live.set(lyc_fx.load(other), 0.7)
        torch.testing.assert_close(names["of_other"], model(x), rtol=1e-5, atol=1e-5)
        live.set(lyc_fx.load(style), 0.9)
        torch.testing.assert_close(names["of_style"], model(x), rtol=1e-5, atol=1e-5)
        live.set([(lyc_fx.load(style), 0.3), (lyc_fx.load(other), 0.3)])
        torch.testing.assert_close(names["of_styles"][3], model(x)[3], rtol=1e-5, atol=1e-5)
    assert torch.equal(names["of_styles"][0], plain[0])
