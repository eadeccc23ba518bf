"""Adapters in every form wherever they are taken; what is of another kind is one error that says what was expected."""

import copy
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import certain, many
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.algorithms import FAMILIES
from lyc_fx.errors import WrongArgument

LOCON = next(f for f in FAMILIES if f.name == "locon")
X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 4))


def factors(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "0.lora_up.weight": torch.randn(5, 2, generator=rng),
        "0.lora_down.weight": torch.randn(2, 3, generator=rng),
        "0.alpha": torch.tensor(3.0),
    }


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "style.safetensors", tmp_path / "detail.safetensors"
    for seed, path in enumerate(paths):
        save_file(factors(seed), path)
    return paths


FORMS: dict[str, Callable[[Path, Path], Any]] = {
    "paths with strengths": lambda style, detail: [(style, 0.7), (detail, 0.7)],
    "paths": lambda style, detail: [style, str(detail)],
    "a mapping of texts": lambda style, detail: {str(style): 0.7, str(detail): 0.7},
    "a mapping of paths": lambda style, detail: {style: 0.7, detail: 0.7},
    "a mapping of sets": lambda style, detail: {lyc_fx.load(style): 0.7, lyc_fx.load(detail): 0.7},
    "sets": lambda style, detail: (lyc_fx.load(style), lyc_fx.load(detail)),
    "mixed": lambda style, detail: [style, (lyc_fx.load(detail), 0.7)],
    "tensors": lambda style, detail: [factors(0), (factors(1), 0.7)],
    "blocks": lambda style, detail: [(style, {"0.*": 0.7}), detail],
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_taken_on_every_road(form: str, files: tuple[Path, Path], tmp_path: Path) -> None:
    given = FORMS[form](*files)
    first, second = (factors(seed) for seed in range(2))
    strengths = [0.7 if isinstance(each, tuple) or isinstance(given, dict) else 1.0 for each in given]
    base = model()
    change = sum(
        s * 1.5 * f["0.lora_up.weight"].double() @ f["0.lora_down.weight"].double()
        for s, f in zip(strengths, (first, second), strict=True)
    )
    wanted = base[0].weight.double() + change
    merged, live, plain = copy.deepcopy(base), copy.deepcopy(base), copy.deepcopy(base)
    lyc_fx.merge(merged, given)
    lyc_fx.live(live).set(given)
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(plain, (X,)), given), check=True)
    save_file(plain.state_dict(), tmp_path / "base.safetensors")
    lyc_fx.fold_checkpoint(tmp_path / "base.safetensors", given, tmp_path / "out.safetensors")
    torch.testing.assert_close(merged[0].weight.double(), wanted, rtol=1e-6, atol=1e-6)
    for weight in (
        live[0].weight,
        folded.get_parameter("0.weight"),
        load_file(tmp_path / "out.safetensors")["0.weight"],
    ):
        assert torch.equal(weight, merged[0].weight)
    assert lyc_fx.coverage(given, plain).complete


def test_one_file_is_enough(files: tuple[Path, Path]) -> None:
    one, other = model(), model()
    lyc_fx.merge(one, str(files[0]), 0.7)
    lyc_fx.merge(other, lyc_fx.load(files[0]), 0.7)
    assert torch.equal(one[0].weight, other[0].weight)
    written = lyc_fx.convert(files[0], "comfyui").contents.tensors
    assert torch.equal(written["0.lora_up.weight"], factors(0)["0.lora_up.weight"])


A = many(**{"0": certain((LOCON, LOCON.layouts[0]), (5, 3))})
OUT = "out.safetensors"
MISTAKES: dict[str, tuple[Callable[[], Any], str]] = {
    "lower a model": (lambda: lyc_fx.lower(model()), "not Sequential: bring it through lyc_fx.capture first"),
    "show a model": (lambda: lyc_fx.show(model()), "not Sequential: bring it through lyc_fx.capture"),
    "fold a model": (lambda: lyc_fx.fold(model()), "not Sequential: bring it through"),
    "history of a model": (lambda: lyc_fx.history(model()), "not Sequential: bring it through"),
    "report of a model": (lambda: lyc_fx.report(model()), "not Sequential: bring it through"),
    "splice, swapped": (
        lambda: lyc_fx.splice(A, lyc_fx.capture(model(), (X,))),
        "not a model .*; the model comes first",
    ),
    "merge, swapped": (lambda: lyc_fx.merge(A, model()), r"not a model \(Sequential\); the model comes first"),
    "coverage, swapped": (lambda: lyc_fx.coverage(model(), A), "the model comes first|is a path or what lyc_fx.load"),
    "live of adapters": (lambda: lyc_fx.live(A), "the model is a AdapterSet: pass an nn.Module, or a pipeline"),
    "a number": (lambda: lyc_fx.merge(model(), 3), r"adapters are a path, .*, not int \(3\)"),
    "a number in a list": (lambda: lyc_fx.merge(model(), [A, 3]), r"is a path or what lyc_fx.load returns, not int"),
    "a bare pair": (lambda: lyc_fx.merge(model(), (A, 0.5)), r"not float \(0.5\): put a pair into a list"),
    "load a number": (lambda: lyc_fx.load(3), r"what to load is a path, not int \(3\)"),
    "fold into a model": (lambda: lyc_fx.fold_checkpoint(model(), A, OUT), "the base is a path, not Sequential"),
    "fold to a number": (lambda: lyc_fx.fold_checkpoint("base.safetensors", A, 3), r"the output is a path, not int"),
    "export to a number": (lambda: lyc_fx.export(model(), 3), r"the output is a path, not int"),
    "export, swapped": (lambda: lyc_fx.export(OUT, model()), "a captured program is expected first, not str"),
    "convert a model": (lambda: lyc_fx.convert(model(), "peft"), r"not a model \(Sequential\)"),
    "a plan": (lambda: lyc_fx.lower(lyc_fx.capture(model(), (X,)), "chain"), "a plan is a lyc_fx.Plan, not str"),
    "keep": (lambda: lyc_fx.live(model(), 3), r"keep is a path, not int"),
    "like": (lambda: lyc_fx.convert(A, "peft", like=3), r"the base is a path, not int"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_wrong_kind_of_argument_is_one_error(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make, words = MISTAKES[mistake]
    with pytest.raises(WrongArgument, match=words) as raised:
        make()
    assert isinstance(raised.value, (lyc_fx.LycFxError, TypeError)) and "\n" not in str(raised.value)
    assert os.listdir(tmp_path) == []


def test_reprs_are_one_line(files: tuple[Path, Path]) -> None:
    net = model()
    adapters = lyc_fx.load(files[0])
    live = lyc_fx.live(net)
    report = live.set(adapters, 0.5)
    assert repr(adapters) == f"<AdapterSet {files[0]}: 1 locon>"
    assert repr(AdapterSet(())) == "<AdapterSet <tensors>: empty>"
    assert repr(report) == "<Report: 1 adapter on 1 weight, 0 keys unused, 0 notes>"
    made = lyc_fx.convert(factors(0), "peft", like=model())
    assert repr(made) == "<Conversion: 1 module, 0 not carried over as they are>"
    assert repr(lyc_fx.coverage(adapters, net)) == "<Coverage: 1 of 2 weights adapted; 3 of 3 keys used>"
    assert repr(live) == "<Live Sequential: 1 weights adapted>"
