"""Running exported files by names: packed adapters, other strengths, and a mistake of each kind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting.models import apart, captured, inputs, loha, lokr, lora, merged
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._pytree import tree_leaves

import lyc_fx
from lyc_fx.errors import BadAdapter, BadFile, LycFxError, Unsupported, WrongArgument


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("exported")
    adapted = lyc_fx.splice(captured(), lora(3, 2.0), 0.7, rank=8)
    lyc_fx.export(lyc_fx.slots(adapted), found / "slots.pt2", check=False)
    lyc_fx.export(lyc_fx.fold(adapted), found / "folded.pt2", check=False)
    lyc_fx.export(
        lyc_fx.styles(lyc_fx.splice(captured(), [lora(3, 2.0), lokr(3.0)])), found / "styles.pt2", check=False
    )
    lyc_fx.pack(loha(2, 1.5), found / "slots.pt2", found / "loha.safetensors", strength=0.6)
    return found


@pytest.fixture
def slots(folder: Path) -> lyc_fx.Artefact:
    return lyc_fx.bind(folder / "slots.pt2")


def test_one_file_takes_three_algorithms_at_any_strength(slots: lyc_fx.Artefact) -> None:
    x, scale = inputs()
    for adapters in (lora(2, 3.0, seed=9), loha(2, 1.5), lokr(3.0)):
        for strength in (0.5, 1.0, -1.25):
            report = slots.set(adapters, strength)
            assert report is not None and len(report.applied) == len(adapters)
            assert apart(slots(x, scale=scale), merged(adapters, strength)) < 2e-6
    slots.strengths = [0.0]
    idle = slots(x, scale=scale)
    slots.set(())
    assert apart(idle, list(tree_leaves(slots(x, scale)))) == 0


def test_packed_adapters(slots: lyc_fx.Artefact, folder: Path) -> None:
    x, scale = inputs(2)
    assert slots.set(folder / "loha.safetensors") is None
    assert slots.strengths.tolist() == pytest.approx([0.6])
    assert apart(slots(x, scale=scale), merged(loha(2, 1.5), 0.6, 2)) < 2e-6
    slots.set(folder / "loha.safetensors", 0.5)
    assert apart(slots(x, scale=scale), merged(loha(2, 1.5), 0.3, 2)) < 2e-6


def test_folded_and_styles(folder: Path) -> None:
    x, scale = inputs(3)
    folded = lyc_fx.bind(folder / "folded.pt2")
    results = folded(x, scale=scale)
    assert set(results) == {"out", "hidden"} and isinstance(results["hidden"], tuple)
    assert apart(results, merged(lora(3, 2.0), 0.7, 3)) == 0
    styles = lyc_fx.bind(folder / "styles.pt2")
    styles.strengths = [0.5, 0.0]
    assert apart(styles(x, scale=scale), merged(lora(3, 2.0), 0.5, 3)) < 2e-6
    styles.strengths = [[0.5, 0.0], [0.0, 0.0], [0.0, -1.0]]
    wanted = merged(lokr(3.0), -1.0, 3)
    assert apart([each[2] for each in tree_leaves(styles(x, scale=scale))], [w[2] for w in wanted]) < 2e-6


def test_the_file_describes_itself(folder: Path) -> None:
    manifest = lyc_fx.bind(folder / "styles.pt2").manifest
    assert manifest.kind == "styles" and manifest.sets == ("0", "1")
    assert [each["sha256"] for each in manifest.adapters] == [lora(3, 2.0).digest, lokr(3.0).digest]
    base = {lyc_fx.bind(folder / f"{name}.pt2").manifest.base for name in ("slots", "styles")}
    assert len(base) == 1


def test_its_tensors_are_its_own(slots: lyc_fx.Artefact) -> None:
    packed = lyc_fx.pack(lora(2, 3.0), slots.manifest, strength=0.5)
    slots.set(packed)
    x, scale = inputs()
    before = tree_leaves(slots(x, scale=scale))
    for tensor in (*packed.tensors.values(), packed.strengths):
        tensor.fill_(7.0)
    assert apart(slots(x, scale=scale), before) == 0


X, SCALE = inputs()
CALLS: dict[str, tuple[Callable[[Any], Any], type[LycFxError], str]] = {
    "dtype": (lambda a: a(X.double(), scale=SCALE), WrongArgument, "x is torch.float64, and the program takes float32"),
    "fixed size": (lambda a: a(X[:, :, :5], scale=SCALE), WrongArgument, r"takes \(x.shape\[0\], 5, 6\)"),
    "dimensions": (lambda a: a(X[0], scale=SCALE), WrongArgument, r"x is \(5, 6\)"),
    "sizes that differ": (lambda a: a(X, scale=SCALE[:2]), WrongArgument, "scale has size 2 where x has 4"),
    "too large": (lambda a: a(X.repeat(20, 1, 1), scale=SCALE.repeat(20, 1, 1)), WrongArgument, "at most 64"),
    "missing": (lambda a: a(X), WrongArgument, "scale is missing; it takes x, scale"),
    "unknown": (lambda a: a(X, scale=SCALE, y=X), WrongArgument, "no argument y"),
    "twice": (lambda a: a(X, x=X, scale=SCALE), WrongArgument, "x is given twice"),
    "too many": (lambda a: a(X, SCALE, True), WrongArgument, "3 arguments, and it takes x, scale"),
    "no tensor": (lambda a: a(X.tolist(), scale=SCALE), WrongArgument, "x is a list, not a tensor"),
    "order": (lambda a: a(SCALE, X), WrongArgument, r"x is \(4, 5, 1\)"),
    "strengths' number": (lambda a: setattr(a, "strengths", [1.0, 2.0]), WrongArgument, "it has 1 adapter sets"),
    "strengths' rows": (lambda a: setattr(a, "strengths", [[1.0]]), WrongArgument, "strengths of shape"),
    "infinite strength": (lambda a: setattr(a, "strengths", [float("inf")]), BadAdapter, "not all finite"),
    "infinite factor": (lambda a: a.set(raw(up=torch.full((7, 2), torch.inf))), BadAdapter, "not finite"),
    "another model's": (lambda a: a.set(raw(module="other")), BadAdapter, "other"),
    "another shape": (lambda a: a.set(raw(up=torch.ones(8, 2))), BadAdapter, "does not fit"),
    "infinite strength of an adapter": (lambda a: a.set(lora(3, 1.0), float("nan")), BadAdapter, "not finite"),
    "infinite strength of a packed one": (
        lambda a: a.set(lyc_fx.pack(lora(3, 1.0), a.manifest), float("inf")), BadAdapter, "not all finite"
    ),
    "a strength that is no number": (
        lambda a: a.set(lyc_fx.pack(lora(3, 1.0), a.manifest), "1"), WrongArgument, "is not a number"
    ),
    "no adapter": (lambda a: a.set("absent.safetensors"), BadFile, "absent.safetensors"),
}  # fmt: skip


def raw(up: Tensor = torch.ones(7, 2), module: str = "last") -> dict[str, Tensor]:  # noqa: B008
    factors = {"lora_up.weight": up, "lora_down.weight": torch.ones(2, 15), "alpha": torch.tensor(1.0)}
    return {f"lycoris_{module}.{name}": tensor for name, tensor in factors.items()}


@pytest.mark.parametrize("kind", CALLS)
def test_mistakes_change_nothing(kind: str, slots: lyc_fx.Artefact) -> None:
    act, error, match = CALLS[kind]
    slots.set(lora(2, 3.0), 0.5)
    with pytest.raises(error, match=match):
        act(slots)
    assert apart(slots(X, scale=SCALE), merged(lora(2, 3.0), 0.5)) < 2e-6


def test_packed_files_that_are_not_for_it(slots: lyc_fx.Artefact, folder: Path, tmp_path: Path) -> None:
    good = load_file(folder / "loha.safetensors")
    with safe_open(folder / "loha.safetensors", "pt") as file:
        metadata = file.metadata()
    changes: dict[str, tuple[dict[str, Tensor], str]] = {
        "lack": ({k: v for k, v in good.items() if "last" not in k}, "the packed adapters lack"),
        "float64": ({k: v.double() for k, v in good.items()}, "is torch.float64"),
        "shape": ({k: v[:1] if k.endswith("up") else v for k, v in good.items()}, "the slot torch.float32"),
        "nan": ({k: v * torch.nan if k.endswith("up") else v for k, v in good.items()}, "NaN or infinity"),
    }
    for name, (tensors, match) in changes.items():
        save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / f"{name}.safetensors", metadata)
        with pytest.raises(BadAdapter, match=match):
            slots.set(tmp_path / f"{name}.safetensors")
    save_file(
        good,
        tmp_path / "other.safetensors",
        {**metadata, "lyc_fx.pack": metadata["lyc_fx.pack"].replace('"form": "', '"form": "0')},
    )
    with pytest.raises(BadAdapter, match="packed for another program"):
        slots.set(tmp_path / "other.safetensors")
    with pytest.raises(BadAdapter, match="takes no adapters"):
        lyc_fx.bind(folder / "folded.pt2").set(folder / "loha.safetensors")


def test_files_that_are_no_programs(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "slots.pt2").read_bytes()
    (tmp_path / "cut.pt2").write_bytes(whole[: len(whole) // 2])
    torch.export.save(torch.export.export(torch.nn.Linear(3, 2), (torch.ones(1, 3),)), tmp_path / "theirs.pt2")
    for name, match in (
        ("cut.pt2", "is cut off"),
        ("theirs.pt2", "no description by lyc-fx"),
        ("absent.pt2", "no such file"),
    ):
        with pytest.raises(BadFile, match=match):
            lyc_fx.bind(tmp_path / name)
    with pytest.raises(Unsupported, match=r"pack writes .safetensors and .onnx_adapter, not .bin"):
        lyc_fx.pack(lora(2, 1.0), folder / "slots.pt2", tmp_path / "x.bin")
