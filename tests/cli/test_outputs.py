"""Outputs: nothing is lost without --force, what is written can be read again, and a dry run is the fold itself."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import lyc_fx
from lyc_fx.errors import BadFile, WrongArgument


@pytest.fixture
def model(files) -> Path:  # type: ignore[no-untyped-def]
    """A model's folder with the base of `files`."""
    folder = files.folder / "model"
    folder.mkdir()
    os.link(files.base, folder / "model.safetensors")
    config = {
        "model_type": "x",
        "dtype": "float32",
        "text_config": {"torch_dtype": "float32"},
        "names": ["a"],
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_an_existing_file_needs_force(files, lyc) -> None:  # type: ignore[no-untyped-def]
    files.out.write_bytes(b"mine")
    said = lyc("fold", files.base, files.locon, "-o", files.out)
    assert said.code == 1 and "exists; force=True (command line: --force) replaces it" in said.err
    assert files.out.read_bytes() == b"mine"
    assert lyc("fold", files.base, files.locon, "-o", files.out, "--force").code == 0
    assert load_file(files.out)
    other = files.folder / "peft"
    for attempt, code in (((), 0), ((), 1), (("--force",), 0)):
        said = lyc("convert", files.locon, "--to", "peft", "--like", files.base, "-o", other, *attempt)
        assert said.code == code, said.err
    assert sorted(os.listdir(other)) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_folder_is_replaced_only_where_lyc_fx_wrote_all_of_it(files, model: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    out = files.folder / "out"
    fold = ("fold", model, files.locon, "-o", out, "--no-strict")
    assert lyc(*fold).code == 0
    assert lyc(*fold).code == 1
    (out / "old.txt").touch()
    assert lyc(*fold, "--force").code == 0
    assert not (out / "old.txt").exists()
    save_file({"mine": torch.zeros(2)}, out / "mine.safetensors")
    said = lyc(*fold, "--force")
    assert said.code == 1 and "lyc-fx did not write everything in it" in said.err
    assert load_file(out / "mine.safetensors")
    assert sorted(p.name for p in files.folder.iterdir() if "part" in p.name) == []


WRONG: dict[str, tuple[Callable[[Any], Path], str]] = {
    "a checkpoint": (
        lambda f: f.folder / "out.ckpt",
        "the output is a safetensors file: name it out.ckpt.safetensors",
    ),
    "no suffix": (lambda f: f.folder / "out", "the output is a safetensors file: name it out.safetensors"),
    "a link": (lambda f: linked(f), "is a link to"),
    "a directory": (lambda f: f.folder, "is a directory"),
    "an adapter": (lambda f: f.locon, "is an input as well as the output"),
}


def linked(files: Any) -> Path:
    link = files.folder / "link.safetensors"
    link.symlink_to(files.folder / "elsewhere.safetensors")
    return link


@pytest.mark.parametrize("options", [(), ("--force",), ("--dry-run",)])
@pytest.mark.parametrize("case", WRONG)
def test_outputs_that_are_refused(case: str, options: tuple[str, ...], files, lyc) -> None:  # type: ignore[no-untyped-def]
    make, words = WRONG[case]
    out = make(files)
    before = files.held()
    said = lyc("fold", files.base, files.locon, "-o", out, *options)
    assert (said.code, said.out) == (1, "") and words in said.err
    assert files.held() == before


def test_a_dry_run_is_the_fold_without_the_writing(files, lyc) -> None:  # type: ignore[no-untyped-def]
    options = ("--block", "fc*=0.5", "--json")
    dry = lyc("fold", files.base, f"{files.locon}@0.7", "--dry-run", *options)
    assert not files.out.exists()
    wet = lyc("fold", files.base, f"{files.locon}@0.7", "-o", files.out, *options)
    tried, done = json.loads(dry.out), json.loads(wet.out)
    assert (dry.code, wet.code) == (0, 0)
    assert (tried["output"], tried["bytes"]) == (None, None)
    for facts in (tried, done):
        for key in ("output", "bytes", "seconds"):
            facts.pop(key)
    assert tried == done and {row["strength"] for row in tried["applied"]} == {0.35, 0.7}
    assert "nothing was written" in lyc("fold", files.base, files.locon, "--dry-run").out


def spoilt(files: Any, value: float) -> Path:
    tensors = load_file(files.base)
    tensors["fc.weight"][0, 0] = value
    path: Path = files.folder / "spoilt.safetensors"
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        lambda f: (spoilt(f, float("nan")), f.locon),
        lambda f: (f.base, f"{f.locon}@1e300", "--only", "lycoris_fc"),
        lambda f: (f.base, f.base),
        lambda f: (f.base, f.locon, "--transposed", "none"),
        lambda f: (f.base, f.locon, "--component", "transformer_2"),
        lambda f: (f.base, f.folder / "nope.safetensors"),
    ],
    ids=["nan", "overflow", "no adapter", "transposed", "component", "no file"],
)
def test_a_dry_run_fails_where_the_fold_does(arguments: Any, files, lyc) -> None:  # type: ignore[no-untyped-def]
    given = arguments(files)
    dry, wet = lyc("fold", *given, "--dry-run"), lyc("fold", *given, "-o", files.out)
    assert dry.code == wet.code == 1 and dry.err == wet.err and not files.out.exists()


def test_another_dtype_is_in_the_configuration(files, model: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    out = files.folder / "half"
    assert lyc("fold", model, files.locon, "-o", out, "--dtype", "bfloat16").code == 0
    config = json.loads((out / "config.json").read_text())
    assert config == {
        "model_type": "x", "dtype": "bfloat16", "text_config": {"torch_dtype": "bfloat16"}, "names": ["a"],
    }  # fmt: skip
    assert load_file(out / "model.safetensors")["fc.weight"].dtype == torch.bfloat16
    same = files.folder / "same"
    assert lyc("fold", model, files.locon, "-o", same).code == 0
    assert (same / "config.json").read_bytes() == (model / "config.json").read_bytes()


@pytest.mark.parametrize("suffix", [".safetensors", ".pt2"])
def test_metadata_is_text_and_is_kept(suffix: str, tmp_path: Path) -> None:
    program = lyc_fx.capture(nn.Linear(3, 5), (torch.randn(2, 3),))
    path = tmp_path / f"out{suffix}"
    with pytest.raises(WrongArgument, match="metadata: 'steps': 3 is not text"):
        lyc_fx.export(program, path, metadata={"steps": 3})  # type: ignore[dict-item]
    assert not path.exists()
    lyc_fx.export(program, path, metadata={"steps": "3"})
    if suffix == ".pt2":
        extra = {"metadata.json": ""}
        torch.export.load(path, extra_files=extra)
        assert json.loads(extra["metadata.json"]) == {"steps": "3"}
    else:
        with safe_open(path, "pt") as file:
            assert file.metadata()["steps"] == "3"


def test_in_python_a_file_is_replaced_and_a_folder_only_with_force(files, model: Path) -> None:  # type: ignore[no-untyped-def]
    files.out.write_bytes(b"mine")
    lyc_fx.fold_checkpoint(files.base, files.locon, files.out)
    assert load_file(files.out)
    out = files.folder / "out"
    lyc_fx.fold_checkpoint(model, files.locon, out)
    with pytest.raises(BadFile, match="out: exists; force=True"):
        lyc_fx.fold_checkpoint(model, files.locon, out)
    lyc_fx.fold_checkpoint(model, files.locon, out, force=True)


@pytest.mark.parametrize("beside", ["optimizer.pt", "checkpoint-500/optimizer.pt", "README.md"])
def test_the_folder_of_a_training_is_never_replaced(beside: str, files) -> None:  # type: ignore[no-untyped-def]
    """It has the files of a PEFT directory too."""
    out = files.folder / "training"
    conversion = lyc_fx.convert(files.locon, "peft", like=files.base)
    conversion.save(out)
    (out / beside).parent.mkdir(exist_ok=True)
    (out / beside).write_bytes(b"days of work")
    for force, words in ((False, "exists; force=True"), (True, "lyc-fx did not write everything in it")):
        with pytest.raises(BadFile, match=words):
            conversion.save(out, force=force)
    assert (out / beside).read_bytes() == b"days of work"


def test_an_index_of_shards_is_a_folder(files, model: Path, lyc) -> None:  # type: ignore[no-untyped-def]
    names = dict.fromkeys(load_file(files.base), "model.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    out = files.folder / "out"
    said = lyc("fold", model / "model.safetensors.index.json", files.locon, "-o", out)
    assert said.code == 0 and (out / "model.safetensors").is_file(), said.err
