"""The README's example runs as it stands, and its claims about files are true."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lyc_fx.families import FAMILIES, random_adapter
from lyc_fx.families.locon import LoCon

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = {}
    for name, shape in (("lycoris_0", (15, 6)), ("lycoris_2", (4, 15))):
        written = random_adapter(LoCon, shape, rank=2, alpha=3.0).written("weight")
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in written.items()}
    save_file(tensors, tmp_path / "style.safetensors")
    monkeypatch.chdir(tmp_path)
    [example] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    assert "2 adapters on 2 weights, 0 keys unused" in capsys.readouterr().out
    model, x = names["model"], torch.randn(5, 6)
    saved = load_file("model.safetensors")
    assert isinstance(model, torch.nn.Module)
    assert all(torch.equal(saved[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(torch.export.load("model.pt2").module()(x), model(x))


def test_every_file_that_the_docs_name_is_there() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / target).exists(), (page.name, target)


def test_every_test_that_the_docs_name_is_there() -> None:
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for name in re.findall(r"`(test_\w+)`", (ROOT / "docs" / "reference.md").read_text()):
        assert f"def {name}(" in tests, name


def test_the_table_of_what_is_supported_names_every_family() -> None:
    table = README.partition("## What is supported today")[2].partition("## Figures")[0].lower()
    for family in FAMILIES:
        assert family.name.replace("-", "") in table.replace("-", ""), family.name
