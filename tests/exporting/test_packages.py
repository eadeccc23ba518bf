"""Packages of AOTInductor whose weights are replaced while they are loaded: merge's, to the bit."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lokr, lora, merged, net
from safetensors.torch import save_file
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils import _pytree as pytree

import lyc_fx
from lyc_fx.artefacts.package import Package
from lyc_fx.artefacts.replaceable import Replaceable
from lyc_fx.binding.stack import stacked
from lyc_fx.errors import BadAdapter, BadFile, LycFxError, Unsupported, WrongArgument
from lyc_fx.exporting.exported import to_exported_program
from lyc_fx.exporting.known import read_known
from lyc_fx.exporting.manifest import Manifest
from lyc_fx.exporting.plain import plain

pytestmark = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a program with folded adapters, which do not touch the layer `conv`."""
    found = tmp_path_factory.mktemp("packages") / "folded.aoti.pt2"
    before = repr(inductor.get_config_copy())
    lyc_fx.export(lyc_fx.fold(lyc_fx.splice(captured(), lokr(3.0), 0.7)), found, check=False)
    assert repr(inductor.get_config_copy()) == before, "other processes would find nothing in inductor's caches"
    return found


@pytest.fixture(scope="module")
def of_base(path: Path) -> Path:
    """The same weights as those of a program without adapters: such a package differs in its description alone."""
    target = path.parent / "base.aoti.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("manifest.json"):
                said = json.loads(data)
                said["kind"], said["weights"]["changes"] = "base", {}
                data = json.dumps(said).encode()
            new.writestr(name, data)
    return target


def weights(artefact: lyc_fx.Artefact) -> dict[str, Tensor]:
    """What the package's code reads."""
    package = artefact._run
    assert isinstance(package, Package)
    return {**package.own, **package._kept}


def wanted(adapters: object, strength: float, base: nn.Module | None = None) -> dict[str, Tensor]:
    model = base or net()
    lyc_fx.merge(model, adapters, strength)
    return model.state_dict()


def same(found: dict[str, Tensor], model: dict[str, Tensor]) -> bool:
    return len(found) == 10 and all(torch.equal(tensor, model[name]) for name, tensor in found.items())


def test_other_adapters_without_another_compilation(path: Path) -> None:
    artefact = lyc_fx.bind(path, base=net())
    x, scale = inputs()
    assert apart(artefact(x, scale=scale), merged(lokr(3.0), 0.7)) < 2e-6
    for adapters, strength in (
        (lora(3, 2.0), 0.6),
        (loha(2, 1.5), -1.25),
        (lokr(3.0), 0.7),
        (lora(2, 1.0, seed=5), 1.5),
    ):
        report = artefact.set(adapters, strength)
        assert report is not None and len(report.applied) == len(adapters) and min(report.changes.values()) > 0
        assert same(weights(artefact), wanted(adapters, strength))
        assert apart(artefact(x, scale=scale), merged(adapters, strength)) < 2e-6
    artefact.set(())
    assert same(weights(artefact), net().state_dict())
    with torch.no_grad():
        assert apart(artefact(x, scale=scale), pytree.tree_leaves(net()(x, scale=scale))) < 2e-6


def test_small_weights_too(path: Path) -> None:
    """Of a norm and biases: of few elements, which a compiler likes to put into the code."""
    adapters = {
        "lycoris_norm.w_norm": torch.linspace(-0.5, 0.5, 5), "lycoris_norm.b_norm": torch.linspace(0.3, -0.2, 5),
        "lycoris_last.diff": torch.full((7, 15), 0.25), "lycoris_last.diff_b": torch.linspace(-1, 1, 7),
    }  # fmt: skip
    artefact = lyc_fx.bind(path, base=net())
    artefact.set(adapters, 0.5)
    assert same(weights(artefact), wanted(adapters, 0.5))
    x, scale = inputs(2)
    assert apart(artefact(x, scale=scale), merged(adapters, 0.5, 2)) < 2e-6


def test_a_package_without_adapters_is_its_own_base(of_base: Path) -> None:
    artefact = lyc_fx.bind(of_base)
    x, scale = inputs()
    before = pytree.tree_leaves(artefact(x, scale=scale))

    def base() -> nn.Module:
        model = net()
        lyc_fx.merge(model, lokr(3.0), 0.7)
        return model

    artefact.set([(lora(3, 2.0), 0.5), (loha(2, 1.5), 1.0)], 0.8)
    assert same(weights(artefact), wanted([(lora(3, 2.0), 0.5), (loha(2, 1.5), 1.0)], 0.8, base()))
    assert apart(artefact(x, scale=scale), before) > 1e-2
    artefact.set(())
    assert apart(artefact(x, scale=scale), before) == 0


def test_the_base_by_its_state_dict_or_file_and_copied(path: Path, tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in net().state_dict().items()}
    save_file(state, tmp_path / "base.safetensors")
    for base in (state, tmp_path / "base.safetensors"):
        artefact = lyc_fx.bind(path, base=base)
        for tensor in state.values():
            tensor.zero_()
        artefact.set(())
        assert same(weights(artefact), net().state_dict())


def changed(**tensors: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = {name: tensor.clone() for name, tensor in net().state_dict().items()}
    return state | {n: change(state[n]) for key, change in tensors.items() if (n := key.replace("_", "."))}


BASES: dict[str, tuple[Callable[[], Any], str]] = {
    "another one": (lambda: changed(last_weight=lambda t: t + 0.01), "another last.weight, which is not what"),
    "unadapted": (lambda: changed(conv_weight=lambda t: t + 1e-6), "another conv.weight, which differs"),
    "one bit": (lambda: changed(norm_bias=torch.negative), "another norm.bias, which differs"),  # 0 and -0
    "shape": (lambda: changed(first_weight=torch.t), r"another first.weight: torch.float32 \(6, 15\), in the package"),
    "dtype": (lambda: changed(conv_bias=Tensor.double), "another conv.bias: torch.float64"),
    "a part": (lambda: {k: v for k, v in net().state_dict().items() if k != "last.weight"}, "has no last.weight"),
    "the folded": (lambda: wanted(lokr(3.0), 0.7), "another (first|last).weight, which is not what"),
    "a number": (lambda: 3, "a model, a state dict or a safetensors file, not a int"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BASES)
def test_another_base_is_refused(kind: str, path: Path) -> None:
    make, match = BASES[kind]
    with pytest.raises(WrongArgument, match=match):
        lyc_fx.bind(path, base=make())


def raw(**changes: Tensor) -> dict[str, Tensor]:
    found = {"lycoris_last.diff": torch.ones(7, 15), "lycoris_last.diff_b": torch.ones(7)}
    return found | {f"lycoris_{name}": tensor for name, tensor in changes.items()}


MISTAKES: dict[str, tuple[dict[str, Tensor], type[LycFxError], str]] = {
    "shape": (raw() | {"lycoris_first.diff": torch.ones(15, 7)}, BadAdapter, r"does not fit first.weight"),
    "infinite": (raw() | {"lycoris_first.diff": torch.full((15, 6), torch.inf)}, BadAdapter, "not finite"),
    "overflow": (raw() | {"lycoris_first.diff": torch.full((15, 6), 3e38)}, BadAdapter, "first.weight: 90 of 90"),
    "another model's": (raw() | {"lycoris_other.diff": torch.ones(7, 15)}, BadAdapter, "other"),
}  # fmt: skip


@pytest.mark.parametrize("kind", MISTAKES)
def test_mistakes_change_nothing(kind: str, path: Path) -> None:
    adapters, error, match = MISTAKES[kind]
    artefact = lyc_fx.bind(path, base=net())
    artefact.set(lora(3, 2.0), 0.6)
    with pytest.raises(error, match=match):
        artefact.set(adapters, 2.0)
    assert same(weights(artefact), wanted(lora(3, 2.0), 0.6))
    x, scale = inputs()
    assert apart(artefact(x, scale=scale), merged(lora(3, 2.0), 0.6)) < 2e-6


def test_what_has_no_base_or_needs_none(path: Path, of_base: Path, tmp_path: Path) -> None:
    artefact = lyc_fx.bind(path)
    with pytest.raises(Unsupported, match=r"those of the base are not in it: give them, lyc_fx.bind"):
        artefact.set(lora(3, 2.0))
    x, scale = inputs()
    assert apart(artefact(x, scale=scale), merged(lokr(3.0), 0.7)) < 2e-6
    with pytest.raises(WrongArgument, match="not for 'base'"):
        lyc_fx.bind(of_base, base=net())
    lyc_fx.export(captured(), tmp_path / "base.pt2", check=False)
    with pytest.raises(WrongArgument, match=r"packages .* with folded adapters"):
        lyc_fx.bind(tmp_path / "base.pt2", base=net())
    copy = tmp_path / "copy.aoti.pt2"
    shutil.copy(of_base, copy)
    artefact = lyc_fx.bind(copy)
    shutil.copy(path, tmp_path / "new")
    (tmp_path / "new").replace(copy)
    with pytest.raises(BadFile, match="has changed since it was loaded"):
        artefact.set(lora(3, 2.0))


class Odd(nn.Module):
    """With a tied weight, and a computed one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.embed.weight
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.normed(self.embed(ids)))


class Held:
    """A package as far as a refusal needs it."""

    def __init__(self, own: dict[str, Tensor]) -> None:
        self.own = own

    def replace(self, tensors: dict[str, Tensor]) -> None:
        raise AssertionError("nothing was to be loaded")


def test_weights_that_are_no_constants_of_their_own() -> None:
    model = Odd().eval()
    program = plain(lyc_fx.capture(model, (torch.zeros(3, dtype=torch.int64),)))
    manifest = Manifest.of(program, "base", to_exported_program(program))
    manifest = Manifest.read(manifest.text(), "file")
    found = Replaceable("file", manifest, Held(model.state_dict()), read_known(manifest.weights), {})  # type: ignore[arg-type]
    for name, shape, error, match in (
        ("head", (9, 6), Unsupported, "head.weight is one constant with embed.weight"),
        ("normed", (6, 6), BadAdapter, "normed.weight is not among the package's constants"),
    ):
        with pytest.raises(error, match=match):
            found.set(stacked({f"lycoris_{name}.diff": torch.ones(shape)}), strict=True)
