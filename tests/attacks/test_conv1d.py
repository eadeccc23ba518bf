"""Conv1D stores (in, out), whatever its class is called and whatever has become of its module; square, so that no shape
gives it away."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

import lyc_fx
from lyc_fx.base.conv1d import is_conv1d, stored_in_out

SIZE, STRENGTH = 6, 0.7


class Derived(Conv1D):
    """What a library may make of it."""


class Net(nn.Module):
    def __init__(self, kind: type[nn.Module] = Conv1D) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c_proj = kind(SIZE, SIZE)
        self.double()
        with torch.no_grad():
            self.c_proj.bias.normal_()

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(x)


class Plain(nn.Module):
    """A bare addmm by a module that has no such convention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias = (nn.Parameter(torch.randn(*s).double()) for s in ((SIZE, SIZE), (SIZE,)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


X = torch.randn(3, SIZE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def renamed() -> nn.Module:
    net = Net()
    net.c_proj.__class__ = type("FSDPConv1D", (Conv1D,), {})
    return net


def weight_normed() -> nn.Module:
    net = Net()
    torch.nn.utils.parametrizations.weight_norm(net.c_proj)
    return net


def local() -> nn.Module:
    class LocalConv1D(Conv1D):
        pass

    return Net(LocalConv1D)


def loaded(folder: Path) -> nn.Module:
    torch.export.save(torch.export.export(Net(), (X,)), folder / "c.pt2")
    return torch.export.load(folder / "c.pt2").module()


def inside(inner: nn.Module) -> nn.Module:
    return nn.Sequential(inner)


FORMS: dict[str, Callable[[Path], nn.Module]] = {
    "plain": lambda folder: Net(),
    "subclass": lambda folder: Net(Derived),
    "class of a function": lambda folder: local(),
    "renamed": lambda folder: renamed(),
    "weight norm": lambda folder: weight_normed(),
    "symbolic_trace": lambda folder: torch.fx.symbolic_trace(Net()),
    "symbolic_trace of a subclass": lambda folder: torch.fx.symbolic_trace(Net(Derived)),
    "symbolic_trace in a model": lambda folder: inside(torch.fx.symbolic_trace(Net())),
    "exported module": lambda folder: torch.export.export(Net(), (X,)).module(),
    "loaded .pt2": loaded,
    "unflattened": lambda folder: torch.export.unflatten(torch.export.export(Net(), (X,))),
}  # fmt: skip


def factors(name: str) -> tuple[dict[str, Tensor], Tensor]:
    rng = torch.Generator().manual_seed(1)
    up, down = torch.randn(SIZE, 2, generator=rng).double(), torch.randn(2, SIZE, generator=rng).double()
    keys = {f"lycoris_{name}.lora_up.weight": up, f"lycoris_{name}.lora_down.weight": down}
    return keys | {f"lycoris_{name}.alpha": torch.tensor(3.0)}, STRENGTH * 1.5 * (up @ down)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_merged_as_the_layer_computes(form: str, tmp_path: Path) -> None:
    model = FORMS[form](tmp_path)
    name = "0_c_proj" if form.endswith("in a model") else "c_proj"
    tensors, change = factors(name)
    wanted = model(X) + X @ change.t()
    report = lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    assert [row.module for row in report.applied] == [f"lycoris_{name}"]
    torch.testing.assert_close(model(X), wanted, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(X @ change, X @ change.t())


@pytest.mark.parametrize(
    "form", ["plain", "subclass", "class of a function", "renamed", "weight norm", "symbolic_trace"]
)
def test_every_form_is_captured_as_the_layer_computes(form: str, tmp_path: Path) -> None:
    model = FORMS[form](tmp_path)
    tensors, change = factors("c_proj")
    wanted = model(X) + X @ change.t()
    adapted = lyc_fx.splice(lyc_fx.capture(model, (X,)), lyc_fx.load(tensors), STRENGTH)
    for program in (adapted, lyc_fx.lower(adapted, check=True), lyc_fx.fold(adapted, check=True)):
        torch.testing.assert_close(program(X), wanted, rtol=1e-12, atol=1e-12)


def test_an_exported_program_is_captured_as_the_layer_computes(tmp_path: Path) -> None:
    tensors, change = factors("c_proj")
    torch.export.save(torch.export.export(Net(Derived), (X,)), tmp_path / "c.pt2")
    for program in (torch.export.export(Net(Derived), (X,)), torch.export.load(tmp_path / "c.pt2")):
        wanted = program.module()(X) + X @ change.t()
        folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(program), lyc_fx.load(tensors), STRENGTH))
        torch.testing.assert_close(folded(X), wanted, rtol=1e-12, atol=1e-12)


def test_a_bare_addmm_keeps_the_orientation_of_its_parameter() -> None:
    """On both roads: (out, in) as for every parameter that is no Conv1D's."""
    tensors, change = factors("layer")
    live, model = nn.ModuleDict({"layer": Plain()}), nn.Sequential()
    model.add_module("layer", Plain())
    lyc_fx.merge(live, lyc_fx.load(tensors), STRENGTH)
    folded = lyc_fx.fold(lyc_fx.splice(lyc_fx.capture(model, (X,)), lyc_fx.load(tensors), STRENGTH))
    assert torch.equal(folded.get_parameter("layer.weight"), live.layer.weight)
    torch.testing.assert_close(live.layer.weight.detach(), Plain().weight + change)


def test_what_is_called_so_and_is_not() -> None:
    assert not is_conv1d(nn.Conv1d) and not is_conv1d("torch.nn.modules.conv.Conv1d") and not is_conv1d("")
    assert is_conv1d("transformers.pytorch_utils.Conv1D") and is_conv1d(Derived)
    assert stored_in_out(nn.Sequential(nn.Linear(2, 3), Conv1D(3, 2), nn.Conv1d(2, 3, 1))) == {"1.weight"}


def test_coverage_and_conversion_see_the_layer_s_own_shape() -> None:
    model = nn.ModuleDict({"c": Derived(15, 6)})
    up, down = torch.randn(15, 2), torch.randn(2, 6)
    adapters = lyc_fx.load({"lycoris_c.lora_up.weight": up, "lycoris_c.lora_down.weight": down})
    assert lyc_fx.coverage(adapters, model).complete


def convolution(base: type[nn.Module]) -> nn.Module:
    """A layer whose class has the name of GPT-2's, and which is a convolution."""

    class Conv1D(base):  # type: ignore[misc,valid-type]
        def __init__(self) -> None:
            super().__init__(SIZE, SIZE, 3, padding=1)

    torch.manual_seed(0)
    return nn.ModuleDict({"layer": Conv1D()}).double()


class Kernel(nn.Module):
    """A convolution that is not derived from torch's."""

    def __init__(self, inner: int, out: int, size: int, padding: int) -> None:
        super().__init__()
        self.padding = padding
        self.weight, self.bias = nn.Parameter(torch.randn(out, inner, size)), nn.Parameter(torch.randn(out))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv1d(x, self.weight, self.bias, padding=self.padding)


@pytest.mark.parametrize("base", [nn.Conv1d, Kernel])
def test_a_convolution_of_that_name_is_a_convolution(base: type[nn.Module]) -> None:
    model, rng = convolution(base), torch.Generator().manual_seed(1)
    assert stored_in_out(model) == frozenset()
    up, down = torch.randn(SIZE, 2, 1, generator=rng).double(), torch.randn(2, SIZE, 3, generator=rng).double()
    before, x = model["layer"].weight.detach().clone(), torch.randn(2, SIZE, 9, generator=rng).double()
    wanted = before + STRENGTH * torch.einsum("orx,rik->oik", up, down)
    tensors = {"lycoris_layer.lora_up.weight": up, "lycoris_layer.lora_down.weight": down}
    keys = {key.replace("layer", "0"): tensor for key, tensor in tensors.items()}
    program = lyc_fx.capture(nn.Sequential(convolution(base)["layer"]), (x,))
    folded = lyc_fx.fold(lyc_fx.splice(program, lyc_fx.load(keys), STRENGTH))
    lyc_fx.merge(model, lyc_fx.load(tensors), STRENGTH)
    for weight in (model["layer"].weight, folded.get_parameter("0.weight")):
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-12, atol=1e-12)
