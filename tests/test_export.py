"""Running and saving: torch.compile, .safetensors, .pt2."""

import shutil
from pathlib import Path

import pytest
import torch
from nets import CASES, one, random_for
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx
from lyc_fx.algorithms import FAMILIES
from lyc_fx.errors import BadFile, InvalidGraph, Unsupported

LOKR = next(f for f in FAMILIES if f.name == "lokr")


class Net(nn.Module):
    """A Linear and a convolution, a non-persistent buffer, keyword and default arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 15)
        self.conv = nn.Conv1d(15, 4, 3, padding=1)
        self.register_buffer("table", torch.arange(4.0)[:, None], persistent=False)

    def forward(self, x: Tensor, *, scale: Tensor, shift: bool = True) -> dict[str, Tensor]:
        hidden = self.layer(x) * scale
        return {"hidden": hidden, "out": self.conv(hidden.transpose(1, 2)) + self.table * shift}


def roads() -> tuple[Net, GraphModule, GraphModule, GraphModule]:
    torch.manual_seed(0)
    model = Net().eval()
    program = lyc_fx.capture(
        model, (torch.randn(2, 5, 6),), {"scale": torch.ones(2, 5, 1)},
        dynamic_shapes={"x": "batch sequence _", "scale": "batch sequence _"},
    )  # fmt: skip
    adapter = random_for((LOKR, LOKR.layouts[1]), (15, 6))
    assert adapter is not None
    adapted = lyc_fx.splice(program, one(adapter), 0.7)
    return model, adapted, lyc_fx.fold(adapted, check=True), lyc_fx.lower(adapted, check=True)


def call(program: nn.Module, batch: int = 3, length: int = 7) -> dict[str, Tensor]:
    torch.manual_seed(4)
    result = program(torch.randn(batch, length, 6), scale=torch.rand(batch, length, 1))
    assert isinstance(result, dict)
    return result


def same(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 0) -> None:
    assert list(a) == list(b) == ["hidden", "out"]
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_every_form_compiles_without_graph_breaks(backend: str) -> None:
    if backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
        pytest.skip("needs a C++ compiler")
    torch._dynamo.reset()
    _, adapted, folded, lowered = roads()
    for program in (adapted, folded, lowered):
        compiled = torch.compile(program, fullgraph=True, dynamic=True, backend=backend)
        same(call(compiled), call(program), 1e-5)


def test_strength_changes_without_a_recompile() -> None:
    torch._dynamo.reset()
    _, adapted, _, lowered = roads()
    for program in (adapted, lowered):
        compiled = torch.compile(program, fullgraph=True, dynamic=True, backend="aot_eager")
        program.get_buffer("lyc_fx.0.strength").fill_(0.7)  # lower shares the factors with the program it came from
        before = call(compiled)
        with torch._dynamo.config.patch(error_on_recompile=True):
            program.get_buffer("lyc_fx.0.strength").fill_(-2.0)
            after = call(compiled)
        same(after, call(program), 1e-5)
        assert not torch.allclose(before["hidden"], after["hidden"])


def test_gradients_through_a_compiled_program() -> None:
    torch._dynamo.reset()
    _, adapted, _, lowered = roads()
    for program in (adapted, lowered):
        compiled = torch.compile(program, fullgraph=True, backend="aot_eager")
        call(compiled)["out"].square().sum().backward()
        factors = {n: p for n, p in program.named_parameters() if n.startswith("lyc_fx.")}
        assert len(factors) == 3
        for name, factor in factors.items():
            assert factor.grad is not None and factor.grad.abs().sum() > 0, name
            factor.grad = None


def test_safetensors_holds_the_models_own_keys(tmp_path: Path) -> None:
    model, adapted, folded, _ = roads()
    path = tmp_path / "folded.safetensors"
    lyc_fx.export(folded, path, metadata={"note": "folded"})
    state = load_file(path)
    assert list(sorted(state)) == sorted(model.state_dict())
    model.load_state_dict(state)
    same(call(model), call(folded))
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt", "note": "folded"}
    with pytest.raises(InvalidGraph, match="still carries adapters: fold it first"):
        lyc_fx.export(adapted, tmp_path / "adapted.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["folded.safetensors"]


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11's own loader
@pytest.mark.parametrize("form", [1, 2, 3])
def test_pt2_loads_back_with_dynamic_sizes(form: int, tmp_path: Path) -> None:
    program = roads()[form]
    path = tmp_path / "program.pt2"
    lyc_fx.export(program, path)
    loaded = torch.export.load(path)
    for sizes in ((3, 7), (2, 9)):
        same(call(loaded.module(), *sizes), call(program, *sizes), 1e-6)
    again = lyc_fx.capture(loaded)
    assert [step.name for step in lyc_fx.history(again)] == []
    same(call(again), call(program), 1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["program.pt2"]


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    folded = roads()[2]
    with pytest.raises(Unsupported, match=r"export writes .safetensors, .*, not .tflite"):
        lyc_fx.export(folded, tmp_path / "model.tflite")
    with pytest.raises(BadFile, match="cannot be written: No such file"):
        lyc_fx.export(folded, tmp_path / "absent" / "model.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(BadFile, match="is a directory"):
        lyc_fx.export(folded, tmp_path / "folder.safetensors")


def test_other_inputs_than_those_of_the_capture_are_refused_in_words() -> None:
    folded = roads()[2]
    with pytest.raises(lyc_fx.errors.CaptureError, match=r"captured for other inputs"):
        folded(torch.randn(3, 7, 5), scale=torch.rand(3, 7, 1))
    with pytest.raises(TypeError, match="scale"):
        folded(torch.randn(3, 7, 6))


def test_tied_weights_stay_tied_in_a_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7, bias=False))
    model[1].weight = model[0].weight
    program = lyc_fx.capture(model, (torch.tensor([[1, 2], [3, 4]]),))
    lyc_fx.export(lyc_fx.fold(program, check=True), tmp_path / "tied.safetensors")
    model.load_state_dict(load_file(tmp_path / "tied.safetensors"))
    assert CASES
