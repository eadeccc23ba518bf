"""Folding into exported programs, `.pt2` and `.onnx`: the same bits as the export of the folded program."""

import json
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule
from typer.testing import CliRunner

import lyc_fx
from lyc_fx.adapters.adapter_set import AdapterSet
from lyc_fx.artefacts.described import described
from lyc_fx.checkpoint.programs.crc import joined
from lyc_fx.checkpoint.programs.fold_program import read_program
from lyc_fx.checkpoint.programs.protobuf import entry, fields, number_at
from lyc_fx.cli import app
from lyc_fx.errors import BadAdapter, BadFile, LycFxError, Unsupported
from tests.exporting import models

STRENGTH = 0.7
ADAPTERS = {"lora": models.lora(2, 3.0), "loha": models.loha(2, 3.0), "lokr": models.lokr(1.5)}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for suffix in (".pt2", ".onnx"):
        lyc_fx.export(models.captured(), folder / f"base{suffix}", check=False)
    with warnings.catch_warnings(action="ignore"):  # torch says that some weights are not contiguous
        torch.export.save(plain(torch.bfloat16), folder / "bf16.pt2")
        torch.export.save(plain(torch.float16), folder / "f16.pt2")
    return folder


class Odd(nn.Module):
    """Layouts that a file keeps: channels last and transposed; and one tensor for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6)
        self.head = nn.Linear(6, 9, bias=False)
        self.head.weight = self.table.weight
        self.conv = nn.Conv2d(6, 10, 3).to(memory_format=torch.channels_last)
        self.turned = nn.Linear(6, 8)
        self.turned.weight = nn.Parameter(torch.randn(6, 8).t())
        self.up = nn.ConvTranspose1d(6, 6, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        rows = self.table(x)
        image = rows.t().reshape(1, 6, 3, 1).expand(1, 6, 3, 3)
        return self.head(rows), self.turned(rows), self.conv(image), self.up(rows.t())


def plain(dtype: torch.dtype) -> torch.export.ExportedProgram:
    torch.manual_seed(3)
    return torch.export.export(Odd().to(dtype).eval(), (torch.arange(3),))


def lora(seed: int = 5, **shapes: tuple[int, ...]) -> AdapterSet:
    rng = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (out, inner, *kernel) in shapes.items():
        tensors[f"lycoris_{name}.lora_up.weight"] = torch.randn(out, 2, *[1] * len(kernel), generator=rng) / 4
        tensors[f"lycoris_{name}.lora_down.weight"] = torch.randn(2, inner, *kernel, generator=rng) / 4
        tensors[f"lycoris_{name}.alpha"] = torch.tensor(3.0)
    return lyc_fx.load(tensors)


ODD = {"conv": (10, 6, 3, 3), "turned": (8, 6)}


@cache
def folded(name: str) -> GraphModule:
    return lyc_fx.fold(lyc_fx.splice(models.captured(), ADAPTERS[name], STRENGTH))


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    """A failure leaves all files as they were, and no others."""

    def content() -> dict[str, bytes]:
        return {str(each): each.read_bytes() for each in folder.rglob("*") if each.is_file()}

    before = content()
    yield
    assert content() == before


def state(path: Path) -> dict[str, Tensor]:
    return dict(torch.export.load(path).state_dict)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_pt2_has_the_bits_of_the_export_of_the_folded_program(name: str, bases: Path, tmp_path: Path) -> None:
    report = lyc_fx.fold_checkpoint(bases / "base.pt2", ADAPTERS[name], tmp_path / "out.pt2", STRENGTH, verify=True)
    lyc_fx.export(folded(name), tmp_path / "wanted.pt2", check=False)
    found, wanted = state(tmp_path / "out.pt2"), state(tmp_path / "wanted.pt2")
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)
    changed = {key for key, old in state(bases / "base.pt2").items() if not torch.equal(found[key], old)}
    assert changed == {row.target for row in report.applied} and len(changed) == len(report.applied) >= 2
    with zipfile.ZipFile(tmp_path / "out.pt2") as archive:
        assert archive.testzip() is None
        names = archive.namelist()
    assert len(names) == len(set(names))
    x, scale = models.inputs()
    with torch.no_grad():
        made = torch.export.load(tmp_path / "out.pt2").module()(x, scale=scale)
    assert models.apart(made, models.merged(ADAPTERS[name], STRENGTH)) < 1e-5


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_onnx_has_the_graph_of_the_export_of_the_folded_program(name: str, bases: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    lyc_fx.fold_checkpoint(bases / "base.onnx", ADAPTERS[name], tmp_path / "out.onnx", STRENGTH, verify=True)
    lyc_fx.export(folded(name), tmp_path / "wanted.onnx", check=False)
    found, wanted = (onnx.load(tmp_path / f"{each}.onnx") for each in ("out", "wanted"))
    assert found.graph.SerializeToString(deterministic=True) == wanted.graph.SerializeToString(deterministic=True)
    assert [each.key for each in found.metadata_props] == ["manifest.json", "lyc_fx.fold"]
    session = runtime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    x, scale = models.inputs()
    made = [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy(), "scale": scale.numpy()})]
    assert models.apart(made, models.merged(ADAPTERS[name], STRENGTH)) < 1e-5


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_description_says_what_was_folded(suffix: str, bases: Path, tmp_path: Path) -> None:
    one, two = tmp_path / f"one{suffix}", tmp_path / f"two{suffix}"
    first = lyc_fx.fold_checkpoint(bases / f"base{suffix}", ADAPTERS["lora"], one, STRENGTH)
    before, after = described(bases / f"base{suffix}"), described(one)
    assert (before.kind, after.kind) == ("base", "folded")
    assert (after.inputs, after.outputs, after.base) == (before.inputs, before.outputs, before.base)
    [said] = after.adapters
    assert (said["sha256"], said["strength"]) == (ADAPTERS["lora"].digest, STRENGTH)
    assert not first.notes
    again = lyc_fx.fold_checkpoint(one, ADAPTERS["lora"], two, 0.3)
    assert any("was already folded into this base" in note for note in again.notes)
    assert [each["strength"] for each in described(two).adapters] == [STRENGTH, 0.3]
    assert len(json.loads(read_program(two).texts["lyc_fx.fold"])) == 2


def test_an_exported_fold_is_known_as_folded(tmp_path: Path) -> None:
    lyc_fx.export(folded("lora"), tmp_path / "a.pt2", check=False)
    report = lyc_fx.fold_checkpoint(tmp_path / "a.pt2", ADAPTERS["lora"], None, 0.3)
    assert any("was already folded into this base" in note for note in report.notes)


@pytest.mark.parametrize("kind", ["bf16", "f16"])
def test_a_plain_program_with_other_layouts(kind: str, bases: Path, tmp_path: Path) -> None:
    """Channels last and transposed storage, in the narrow dtypes: the bits of the live road; all else stays."""
    adapters, base, out = lora(**ODD), bases / f"{kind}.pt2", tmp_path / "out.pt2"
    held = read_program(base).held
    assert held["conv.weight"].turned and held["turned.weight"].turned and not held["up.weight"].turned
    lyc_fx.fold_checkpoint(base, adapters, out, STRENGTH)
    dtype = state(base)["conv.weight"].dtype
    torch.manual_seed(3)
    model = Odd().to(dtype).eval()
    lyc_fx.merge(model, adapters, STRENGTH)
    old, new, wanted = state(base), state(out), model.state_dict()
    assert {key for key in old if not torch.equal(old[key], new[key])} == {f"{name}.weight" for name in ODD}
    for key, value in new.items():
        assert torch.equal(value, wanted[key]), key
        assert (value.stride(), value.dtype) == (old[key].stride(), dtype)
    program = torch.export.load(out).module()
    for made, expected in zip(program(torch.arange(3)), model(torch.arange(3)), strict=True):
        assert torch.equal(made, expected)
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        [text] = [name for name in archive.namelist() if name.endswith("/extra/lyc_fx.fold")]
        assert adapters.digest in archive.read(text).decode()


def test_large_weights_in_blocks_and_any_memory(tmp_path: Path) -> None:
    """Several blocks for one entry of the archive, whose checksums are joined; the same bytes within little memory."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(701, 1803)).eval()
    torch.export.save(torch.export.export(model, (torch.randn(1, 701),)), tmp_path / "base.pt2")
    adapters = lora(**{"0": (1803, 701)})
    for name, memory in (("a", 2**29), ("b", 1)):
        lyc_fx.fold_checkpoint(tmp_path / "base.pt2", adapters, tmp_path / f"{name}.pt2", STRENGTH, memory=memory)
    assert (tmp_path / "a.pt2").read_bytes() == (tmp_path / "b.pt2").read_bytes()
    lyc_fx.merge(model, adapters, STRENGTH)
    assert torch.equal(state(tmp_path / "a.pt2")["0.weight"], model[0].weight)
    with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
        assert archive.testzip() is None


def test_tied_weights_change_together_or_not_at_all(bases: Path, tmp_path: Path) -> None:
    base, out = bases / "bf16.pt2", tmp_path / "out.pt2"
    one = lora(table=(9, 6))
    with unchanged(tmp_path), pytest.raises(Unsupported, match=r"are one tensor, and the adapters make them differ"):
        lyc_fx.fold_checkpoint(base, one, out, STRENGTH)
    factors = one.entries[0].adapter.factors()
    both = {}
    for name in ("table", "head"):
        both[f"lycoris_{name}.lora_up.weight"], both[f"lycoris_{name}.lora_down.weight"] = (
            factors["up"],
            factors["down"],
        )
        both[f"lycoris_{name}.alpha"] = torch.tensor(3.0)
    report = lyc_fx.fold_checkpoint(base, lyc_fx.load(both), out, STRENGTH)
    found, old = state(out), state(base)
    assert torch.equal(found["table.weight"], found["head.weight"])
    assert found["table.weight"].data_ptr() == found["head.weight"].data_ptr()
    delta = found["table.weight"].double() - old["table.weight"].double()
    exact = STRENGTH * 1.5 * factors["up"].double() @ factors["down"].double()
    assert (delta - exact).abs().max() < 2**-7 * found["table.weight"].abs().max()
    assert {row.target for row in report.applied} == {"table.weight", "head.weight"}


def test_an_onnx_names_a_tied_weight_once(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    torch.manual_seed(3)
    program = lyc_fx.capture(Tied().eval(), (torch.arange(3),))
    lyc_fx.export(program, tmp_path / "base.onnx", check=False)
    [name] = {"table", "head"} & {key.split(".")[0] for key in read_program(tmp_path / "base.onnx").held}
    with (
        unchanged(tmp_path),
        pytest.raises(Unsupported, match=r"is read as one tensor by Gather of 'table', a layer of 'head'"),
    ):
        lyc_fx.fold_checkpoint(tmp_path / "base.onnx", lora(**{name: (9, 6)}), tmp_path / "out.onnx", STRENGTH)
    lyc_fx.fold_checkpoint(tmp_path / "base.onnx", lora(twice=(6, 6)), tmp_path / "out.onnx", STRENGTH)
    assert (tmp_path / "out.onnx").exists()


class Tied(nn.Module):
    """One weight under two names, and one layer that is called twice, which is no tie."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head, self.twice = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False), nn.Linear(6, 6)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.twice(self.twice(self.table(x))))


@pytest.fixture(scope="module")
def outside(bases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ONNX file with its weights in another."""
    onnx = pytest.importorskip("onnx")
    folder = tmp_path_factory.mktemp("outside")
    model = onnx.load(bases / "base.onnx")
    onnx.save(
        model, folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=100
    )  # the weights of three layers, and not their biases
    return folder


def test_weights_in_another_file(outside: Path, bases: Path, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    before = {each.name: each.read_bytes() for each in outside.iterdir()}
    out = outside / "renamed.onnx"
    lyc_fx.fold_checkpoint(outside / "m.onnx", ADAPTERS["lora"], out, STRENGTH)
    lyc_fx.fold_checkpoint(bases / "base.onnx", ADAPTERS["lora"], tmp_path / "inside.onnx", STRENGTH)
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("renamed.onnx", "renamed.onnx.data"):
        shutil.move(outside / name, moved / name)
    assert {each.name: each.read_bytes() for each in outside.iterdir()} == before
    found = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(moved / out.name).graph.initializer}
    for each in onnx.load(tmp_path / "inside.onnx").graph.initializer:
        assert np.array_equal(found[each.name], onnx.numpy_helper.to_array(each))
    session = runtime.InferenceSession(moved / out.name, providers=["CPUExecutionProvider"])
    x, scale = models.inputs()
    made = [torch.from_numpy(each) for each in session.run(None, {"x": x.numpy(), "scale": scale.numpy()})]
    assert models.apart(made, models.merged(ADAPTERS["lora"], STRENGTH)) < 1e-5


def test_weights_in_another_file_that_is_missing_or_short(outside: Path, tmp_path: Path) -> None:
    base = tmp_path / "m.onnx"
    shutil.copy(outside / "m.onnx", base)
    with pytest.raises(BadFile, match=r"m\.onnx\.data, which is missing"):
        lyc_fx.fold_checkpoint(base, ADAPTERS["lora"], tmp_path / "o.onnx")
    (tmp_path / "m.onnx.data").write_bytes((outside / "m.onnx.data").read_bytes()[:-100])
    with unchanged(tmp_path), pytest.raises(BadFile, match=r"is not whole in it"):
        lyc_fx.fold_checkpoint(base, ADAPTERS["lora"], tmp_path / "o.onnx")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_failure_leaves_the_target(suffix: str, bases: Path, tmp_path: Path) -> None:
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"before")
    huge = lora(first=(15, 6), last=(7, 15))
    with unchanged(tmp_path), pytest.raises(BadAdapter, match="beyond the range"):  # found while it is written
        lyc_fx.fold_checkpoint(bases / f"base{suffix}", huge, out, 1e39)

    def interrupted(name: str, size: int) -> None:
        raise KeyboardInterrupt

    with unchanged(tmp_path), pytest.raises(KeyboardInterrupt):
        lyc_fx.fold_checkpoint(bases / f"base{suffix}", huge, out, progress=interrupted)
    with unchanged(tmp_path):
        lyc_fx.fold_checkpoint(bases / f"base{suffix}", huge, None)


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_file_that_is_cut_off(suffix: str, share: float, bases: Path, tmp_path: Path) -> None:
    whole = (bases / f"base{suffix}").read_bytes()
    base = tmp_path / f"short{suffix}"
    base.write_bytes(whole[: int(share * len(whole))])
    with unchanged(tmp_path), pytest.raises(BadFile, match="cut off"):
        lyc_fx.fold_checkpoint(base, ADAPTERS["lora"], tmp_path / f"out{suffix}")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_programs_with_adapters_are_refused(suffix: str, tmp_path: Path) -> None:
    adapted = lyc_fx.splice(models.captured(), ADAPTERS["lora"], STRENGTH)
    slots = lyc_fx.slots(lyc_fx.splice(models.captured(), ADAPTERS["lora"], rank=2))
    for program, said in ((adapted, "has adapters inside"), (slots, r"lyc_fx\.bind\('base")):
        lyc_fx.export(program, tmp_path / f"base{suffix}", check=False)
        with unchanged(tmp_path), pytest.raises(Unsupported, match=said):
            lyc_fx.fold_checkpoint(tmp_path / f"base{suffix}", ADAPTERS["lora"], tmp_path / f"out{suffix}")


def test_compiled_old_and_repacked_archives_are_refused(bases: Path, tmp_path: Path) -> None:
    compiled, old, packed = (tmp_path / name for name in ("m.aoti.pt2", "old.pt2", "packed.pt2"))
    for path, name in ((compiled, "m/data/aotinductor/model/a.so"), (old, "serialized_state_dict.pt")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"")
    with zipfile.ZipFile(bases / "base.pt2") as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name))
    for path, said in ((compiled, r"lyc_fx\.bind\('m\.aoti\.pt2'\)\.set"), (old, "saved by an old torch")):
        with unchanged(tmp_path), pytest.raises(Unsupported, match=said):
            lyc_fx.fold_checkpoint(path, ADAPTERS["lora"], tmp_path / "out.pt2")
    with (
        unchanged(tmp_path),
        pytest.raises(LycFxError, match=r"first\.weight is compressed, for the archive was packed"),
    ):
        lyc_fx.fold_checkpoint(packed, ADAPTERS["lora"], tmp_path / "out.pt2")


def test_an_archive_with_a_text_before_the_weights(bases: Path, tmp_path: Path) -> None:
    """As other tools may order it: the old text is not in the output."""
    base, out = tmp_path / "base.pt2", tmp_path / "out.pt2"
    with zipfile.ZipFile(bases / "base.pt2") as source, zipfile.ZipFile(base, "w") as archive:
        for name in sorted(source.namelist(), key=lambda name: not name.endswith("manifest.json")):
            archive.writestr(name, source.read(name))
    lyc_fx.fold_checkpoint(base, ADAPTERS["lora"], out, STRENGTH)
    wanted = folded("lora").state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in state(out).items())
    with zipfile.ZipFile(out) as archive:
        assert archive.testzip() is None
        assert len(archive.namelist()) == len(set(archive.namelist()))
    assert described(out).kind == "folded"


def test_names_that_match_nothing_are_listed(tmp_path: Path, bases: Path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(bases / "base.onnx")
    for i, each in enumerate(model.graph.initializer):
        each.name = f"val_{i}"
    onnx.save(model, tmp_path / "renamed.onnx")
    with unchanged(tmp_path), pytest.raises(BadAdapter, match=r"(?s)lycoris_first.*optimize=False"):
        lyc_fx.fold_checkpoint(tmp_path / "renamed.onnx", ADAPTERS["lora"], tmp_path / "out.onnx")


def test_an_adapter_for_a_transposed_convolution_is_refused_as_in_a_graph(bases: Path, tmp_path: Path) -> None:
    with unchanged(tmp_path), pytest.raises(BadAdapter, match="belongs to a transposed convolution"):
        lyc_fx.fold_checkpoint(bases / "bf16.pt2", lora(up=(6, 6, 3)), tmp_path / "out.pt2")


def test_what_cannot_be_asked_of_a_program(bases: Path, tmp_path: Path) -> None:
    base, adapters = bases / "base.pt2", ADAPTERS["lora"]
    with pytest.raises(Unsupported, match="computes in the dtypes"):
        lyc_fx.fold_checkpoint(base, adapters, tmp_path / "out.pt2", dtype=torch.bfloat16)
    with pytest.raises(BadFile, match="resume"):
        lyc_fx.fold_checkpoint(base, adapters, tmp_path / "out.pt2", resume=True)
    with pytest.raises(BadFile, match=r"a \.pt2 file, as the base is: name it out\.pt2"):
        lyc_fx.fold_checkpoint(base, adapters, tmp_path / "out.onnx")
    with unchanged(bases), pytest.raises(BadFile, match="is an input as well as the output"):
        lyc_fx.fold_checkpoint(base, adapters, base)
    with pytest.raises(BadFile, match="no such file"):
        lyc_fx.fold_checkpoint(tmp_path / "missing.pt2", adapters, tmp_path / "out.pt2")


@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_the_command_line(suffix: str, bases: Path, tmp_path: Path) -> None:
    adapter, out = tmp_path / "a.safetensors", tmp_path / f"out{suffix}"
    tensors = {}
    for each in ADAPTERS["lora"].entries:
        factors = each.adapter.factors()
        tensors[f"{each.module}.lora_up.weight"], tensors[f"{each.module}.lora_down.weight"] = (
            factors["up"].contiguous(),
            factors["down"].contiguous(),
        )
        tensors[f"{each.module}.alpha"] = torch.tensor(3.0)
    save_file(tensors, adapter)
    arguments = ["fold", str(bases / f"base{suffix}"), f"{adapter}@0.7", "-o", str(out)]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "3 adapters on 3 weights" in done.output
    held, wanted = read_program(out).held, folded("lora").state_dict()
    with out.open("rb") as file:
        for name in models.SHAPES:
            file.seek(held[f"{name}.weight"].stored.start)
            assert file.read(wanted[f"{name}.weight"].nbytes) == wanted[f"{name}.weight"].numpy().tobytes()
    assert CliRunner().invoke(app, arguments).exit_code != 0  # it is there


def test_checksums_of_parts_are_joined() -> None:
    data = bytes(range(256)) * 41
    for cut in (0, 1, 7, 4096, len(data)):
        first, second = data[:cut], data[cut:]
        assert joined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(data)


def test_fields_of_a_message() -> None:
    message = b"\x08\xac\x02" + entry(300, b"x" * 200) + b"\x0d\1\2\3\4" + b"\x11" + bytes(8)
    found = list(fields(message, 0, len(message)))
    assert [each.number for each in found] == [1, 300, 1, 2]
    assert number_at(message, found[0].start, found[0].stop)[0] == 300
    assert message[found[1].start : found[1].stop] == b"x" * 200
    for wrong in (message[:-1], b"\xff" * 12, b"\x0b", b"\x80"):
        with pytest.raises(ValueError):
            list(fields(wrong, 0, len(wrong)))
