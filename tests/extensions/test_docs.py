"""The page on extending is true: its Python runs, and every thing on it is of use."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lyc_fx
from lyc_fx.extensions import Table
from lyc_fx.naming import Names
from lyc_fx.registering import TABLES, temporarily

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()


def test_the_page_names_every_group() -> None:
    groups: list[Table[Any]] = list(TABLES.values())
    assert {table.group for table in groups} == set(re.findall(r"\| `(lyc_fx\.\w+)` \|$", PAGE, re.MULTILINE))


def test_its_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with temporarily():
        names: dict[str, Any] = {"__name__": "extending"}
        for block in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
            exec(block, names)
        said = capsys.readouterr().out
        assert "diagonal" in said and "one-relu" in said
        a, d, b = (names["factors"][f"fc.diagonal_{x}"].double() for x in "AdB")
        fc = nn.Linear(6, 4).double()
        wanted = fc.weight.detach() + b @ torch.diag(d) @ a
        model = nn.Sequential()
        model.add_module("fc", fc)
        lyc_fx.merge(model, {f"fc::diagonal_{x}": names["factors"][f"fc.diagonal_{x}"] for x in "AdB"})
        torch.testing.assert_close(fc.weight, wanted, rtol=1e-12, atol=1e-12)
        shapes = {f"layers.0.{module}.weight": (4, 4) for module in ("widen", "q", "k", "v")}
        [pieces] = Names(shapes).find("blocks_0_qkv", "weight")
        assert [piece.parameter for piece in pieces] == [f"layers.0.{module}.weight" for module in "qkv"]
        check_layer_kind(names["product"], names["factors"])


def check_layer_kind(product: Any, factors: dict[str, Tensor]) -> None:
    """Its chain fires, and is the merged layer."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 60, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return product(self.weight, x)

    model, x = nn.Sequential(), torch.randn(3, 60, dtype=torch.float64)
    model.add_module("fc", Own())
    given = {"fc.lora_down.weight": torch.randn(2, 60), "fc.lora_up.weight": torch.randn(64, 2)}
    lowered = lyc_fx.lower(lyc_fx.splice(lyc_fx.capture(model, (x,)), given), check=True)
    assert next(step for step in lyc_fx.history(lowered) if step.name == "distribute").fired == 1
    wanted = x @ (model.fc.weight + given["fc.lora_up.weight"].double() @ given["fc.lora_down.weight"].double()).t()
    torch.testing.assert_close(lowered(x), wanted, rtol=1e-10, atol=1e-10)
