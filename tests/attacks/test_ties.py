"""One tensor under several names, however the model is brought in: an adapter is for the name that it has."""

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import lyc_fx
from lyc_fx.errors import BadAdapter
from lyc_fx.exporting.weights import Untied

STRENGTH = 0.7
IDS = torch.randint(0, 20, (2, 3), generator=torch.Generator().manual_seed(2))


class Tied(nn.Module):
    """A head that is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight
        self.double()

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embed(ids)))


def saved(program: Any, folder: Path) -> Any:
    torch.export.save(program, folder / "t.pt2")
    return torch.export.load(folder / "t.pt2")


def ours(folder: Path) -> Any:
    lyc_fx.export(lyc_fx.capture(Tied(), (IDS,)), folder / "o.pt2")
    return torch.export.load(folder / "o.pt2")


FORMS: dict[str, Callable[[Path], Any]] = {
    "model": lambda folder: Tied(),
    "symbolic_trace": lambda folder: torch.fx.symbolic_trace(Tied()),
    "exported": lambda folder: torch.export.export(Tied(), (IDS,), strict=False),
    "exported, strict": lambda folder: torch.export.export(Tied(), (IDS,), strict=True),
    "saved": lambda folder: saved(torch.export.export(Tied(), (IDS,), strict=False), folder),
    "saved, strict": lambda folder: saved(torch.export.export(Tied(), (IDS,), strict=True), folder),
    "our own .pt2": ours,
}


def factors(*names: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    tensors, changes = {}, {}
    for position, name in enumerate(names):
        rng = torch.Generator().manual_seed(position)
        up, down = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((20, 2), (2, 8)))
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(3.0)}
        changes[name] = STRENGTH * 1.5 * up @ down
    return tensors, changes


def apart(changes: dict[str, Tensor]) -> nn.Module:
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    with torch.no_grad():
        for name, change in changes.items():
            model.get_submodule(name).weight += change
    return model


@pytest.mark.parametrize("names", [("head",), ("embed",), ("embed", "head")], ids="+".join)
@pytest.mark.parametrize("form", FORMS)
def test_each_use_has_the_adapter_of_its_own_module(form: str, names: tuple[str, ...], tmp_path: Path) -> None:
    tensors, changes = factors(*names)
    source = FORMS[form](tmp_path)
    captured = lyc_fx.capture(source, (IDS,)) if isinstance(source, nn.Module) else lyc_fx.capture(source)
    adapted = lyc_fx.splice(captured, lyc_fx.load(tensors), STRENGTH)
    wanted = apart(changes)(IDS)
    folded = lyc_fx.fold(adapted, check=True)
    for program in (adapted, lyc_fx.lower(adapted, check=True), folded):
        torch.testing.assert_close(program(IDS), wanted, rtol=1e-12, atol=1e-12)
    assert (wanted - Tied()(IDS)).abs().max() > 0.1
    assert sorted(folded.state_dict()) == ["embed.weight", "head.weight"]
    assert lyc_fx.report(folded).notes or len(names) > 1, "untying is said"


def test_live_and_graph_agree(tmp_path: Path) -> None:
    for names in (("head",), ("embed",)):
        tensors, _ = factors(*names)
        live = Tied()
        lyc_fx.merge(live, lyc_fx.load(tensors), STRENGTH)
        captured = lyc_fx.capture(saved(torch.export.export(Tied(), (IDS,), strict=True), tmp_path))
        folded = lyc_fx.fold(lyc_fx.splice(captured, lyc_fx.load(tensors), STRENGTH))
        for name, tensor in live.state_dict().items():
            assert torch.equal(folded.state_dict()[name], tensor), name


class Twice(nn.Module):
    """One parameter under two names of one module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Parameter(torch.randn(20, 8).double())
        self.b = self.a

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.a.t()) @ self.b


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Twice()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pytest.mark.parametrize("name", ["inner.a", "inner.b"])
def test_two_names_in_one_module(name: str) -> None:
    """The live model tells them apart, a graph does not."""
    x = torch.randn(3, 8).double()
    tensors, changes = factors(name)
    live = Outer()
    wanted = copy.deepcopy(live)
    wanted.inner.b = nn.Parameter(wanted.inner.a.detach().clone())
    with torch.no_grad():
        wanted.get_parameter(name).add_(changes[name])
    program = lyc_fx.capture(live, (x,))
    with pytest.raises(BadAdapter, match="are one tensor in one module"):
        lyc_fx.splice(program, lyc_fx.load(tensors), STRENGTH)
    lyc_fx.merge(live, lyc_fx.load(tensors), STRENGTH)
    torch.testing.assert_close(live(x), wanted(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("loaded", [False, True], ids=["captured", "from .pt2"])
def test_a_file_with_two_values_of_a_tied_tensor_is_said(loaded: bool, tmp_path: Path) -> None:
    program = lyc_fx.capture(Tied(), (IDS,))
    if loaded:
        lyc_fx.export(program, tmp_path / "model.pt2")
        program = lyc_fx.capture(torch.export.load(tmp_path / "model.pt2"))
    diff = {"lycoris_head.diff": torch.randn(20, 8)}
    folded = lyc_fx.fold(lyc_fx.splice(program, lyc_fx.load(diff), 0.7))
    with pytest.warns(Untied, match=r"embed.weight and head.weight were one tensor .* differ now.* Untie it"):
        lyc_fx.export(folded, tmp_path / "out.safetensors")
    state = load_file(tmp_path / "out.safetensors")
    torch.testing.assert_close(state["head.weight"], state["embed.weight"] + 0.7 * diff["lycoris_head.diff"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lyc_fx.export(program, tmp_path / "same.safetensors")
