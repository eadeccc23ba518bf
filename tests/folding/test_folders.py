"""Folds of shards and pipelines: same files, merged weights; safe, resumable, the same bytes whoever does what."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from nets import random_for
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import lyc_fx
import lyc_fx.checkpoint.fold
from lyc_fx.adapters.adapter_set import AdapterSet, Entry
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.binding.report import NothingChanged
from lyc_fx.errors import BadAdapter, BadFile
from lyc_fx.formats.lycoris import Lycoris
from lyc_fx.merging import blocks


def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {f"h.{i}.fc.weight": torch.randn(15 + i, 6).bfloat16() for i in range(5)} | {
        "norm.weight": torch.randn(7),
        "steps": torch.tensor(3),
        "empty": torch.zeros(0, 4),
    }


def adapters() -> AdapterSet:
    made = {f"h.{i}.fc": random_for((LoCon, LoCon.layouts[0]), (15 + i, 6), seed=i) for i in range(4)}
    return AdapterSet(tuple(Entry(n, "weight", a, (n,)) for n, a in made.items() if a is not None))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model in three shards, with what from_pretrained needs besides."""
    folder = tmp_path / "model"
    folder.mkdir()
    whole = weights()
    names = list(whole)
    for number, part in enumerate((names[:2], names[2:4], names[4:])):
        save_file({n: whole[n] for n in part}, folder / f"model-{number}.safetensors", {"format": "pt"})
    index = {n: f"model-{k}.safetensors" for k, part in enumerate((names[:2], names[2:4], names[4:])) for n in part}
    size = sum(t.numel() * t.element_size() for t in whole.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": size}, "weight_map": index})
    )
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.txt").write_text("a\nb\n")
    (folder / "pytorch_model.bin").write_bytes(b"an unmerged copy")
    return folder


def state(folder: Path) -> dict[str, Tensor]:
    return {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def by_one_file(tmp_path: Path, **options: object) -> dict[str, Tensor]:
    save_file(weights(), tmp_path / "one.safetensors")
    lyc_fx.fold_checkpoint(tmp_path / "one.safetensors", adapters(), tmp_path / "one.out.safetensors", 0.7, **options)  # type: ignore[arg-type]
    return load_file(tmp_path / "one.out.safetensors")


def test_shards(model: Path, tmp_path: Path) -> None:
    report = lyc_fx.fold_checkpoint(
        model / "model.safetensors.index.json", adapters(), tmp_path / "out", 0.7, verify=True
    )
    assert len(report.applied) == 4
    assert report.notes == ("pytorch_model.bin was not copied: it holds weights without the adapters",)
    files = set(bytes_of(model)) - {"pytorch_model.bin"}
    assert set(bytes_of(tmp_path / "out")) == files
    for same in ("config.json", "tokenizer/vocab.txt", "model.safetensors.index.json"):
        assert (tmp_path / "out" / same).read_bytes() == (model / same).read_bytes()
    given, wanted, base = state(tmp_path / "out"), by_one_file(tmp_path), weights()
    assert given.keys() == wanted.keys()
    assert all(torch.equal(given[n], wanted[n]) for n in given)
    assert [n for n in given if not torch.equal(given[n], base[n])] == [f"h.{i}.fc.weight" for i in range(4)]
    with safe_open(tmp_path / "out" / "model-0.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert json.loads(file.metadata()["lyc_fx.fold"])[0]["adapters"][0]["strength"] == 0.7


def test_another_dtype(model: Path, tmp_path: Path) -> None:
    lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", 0.7, dtype=torch.float32)
    given = state(tmp_path / "out")
    assert {str(t.dtype) for t in given.values()} == {"torch.float32", "torch.int64"}
    rounded = by_one_file(tmp_path)
    for name, value in given.items():
        assert torch.equal(value.to(rounded[name].dtype), rounded[name]), "rounded once, from the same sum"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in given.values())


def test_a_pipeline_s_folder(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    for part, out in (("unet", 15), ("text_encoder", 10), ("text_encoder_2", 12)):
        (pipe / part).mkdir(parents=True)
        save_file({"fc.weight": torch.randn(out, 6)}, pipe / part / "model.safetensors")
    (pipe / "model_index.json").write_text("{}")
    made = {"lora_unet_fc": 15, "lora_te1_fc": 10, "lora_te2_fc": 12}
    entries = [
        Entry(n, "weight", a, (n,)) for n, out in made.items() if (a := random_for((LoCon, LoCon.layouts[0]), (out, 6)))
    ]
    report = lyc_fx.fold_checkpoint(pipe, AdapterSet(tuple(entries)), tmp_path / "out")
    assert {(row.module, row.target) for row in report.applied} == {
        ("lora_unet_fc", "unet.fc.weight"),
        ("lora_te1_fc", "text_encoder.fc.weight"),
        ("lora_te2_fc", "text_encoder_2.fc.weight"),
    }
    assert list(load_file(tmp_path / "out" / "unet" / "model.safetensors")) == ["fc.weight"]
    assert (tmp_path / "out" / "model_index.json").read_text() == "{}"


def test_the_bytes_do_not_depend_on_memory_or_threads(model: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(blocks, "BLOCK", 20)
    lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "a", rounding="stochastic", seed=5)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(7))
    lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "b", rounding="stochastic", seed=5, memory=1)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "c", rounding="stochastic", seed=6)
    assert bytes_of(tmp_path / "a") != bytes_of(tmp_path / "c")


@pytest.mark.parametrize("ranks", [2, 3])
def test_several_ranks_write_the_same_bytes(model: Path, tmp_path: Path, ranks: int) -> None:
    """Two of torchrun, and three that are forked, which is quicker."""
    save_file(dict(Lycoris().write(adapters()).tensors), tmp_path / "a.safetensors")
    lyc_fx.fold_checkpoint(model, tmp_path / "a.safetensors", tmp_path / "alone")
    start = torchrun if ranks == 2 else forked
    done = start(ranks, model, tmp_path / "a.safetensors", tmp_path / "shared")
    assert done.returncode == 0, done.stderr
    assert bytes_of(tmp_path / "shared") == bytes_of(tmp_path / "alone")
    assert done.stdout.count("wrote ") == 1, "one rank speaks"


def test_a_rank_that_fails_fails_all_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    shard = model / "model-2.safetensors"
    spoilt = load_file(shard)
    spoilt["h.4.fc.weight"] = torch.full((19, 6), 3e38).bfloat16()
    save_file(spoilt, shard)
    huge = AdapterSet((Entry("h.4.fc", "weight", LoCon(up=torch.full((19, 1), 3e38), down=torch.ones(1, 6)), ("h",)),))
    save_file(dict(Lycoris().write(huge).tensors), tmp_path / "a.safetensors")
    before = sorted(os.listdir(tmp_path))
    done = torchrun(2, model, tmp_path / "a.safetensors", tmp_path / "shared")
    assert done.returncode != 0
    assert "beyond the range" in done.stderr
    assert sorted(os.listdir(tmp_path)) == before


def torchrun(ranks: int, *files: Path) -> "subprocess.CompletedProcess[str]":
    options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return folding([*options, "-m", "lyc_fx"], *files)


def forked(ranks: int, *files: Path) -> "subprocess.CompletedProcess[str]":
    return folding([str(Path(__file__).parents[1] / "ranks.py"), str(ranks)], *files)


def folding(options: list[str], base: Path, adapter: Path, out: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, *options, "fold", str(base), str(adapter), "-o", str(out)],
        capture_output=True, text=True, check=False, timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(lyc_fx.__file__).parent.parent)},
    )  # fmt: skip


def test_resume_goes_on_from_the_shards_that_are_done(model: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    wanted = lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "wanted")
    seen: list[str] = []
    original = lyc_fx.checkpoint.fold.run_jobs  # type: ignore[attr-defined]

    def failing(source: Path, *arguments: object, **options: object) -> object:
        seen.append(source.name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return original(source, *arguments, **options)

    monkeypatch.setattr(lyc_fx.checkpoint.fold, "run_jobs", failing)
    with pytest.raises(KeyboardInterrupt):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", resume=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadFile, match="holds another, unfinished fold"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", 0.5, resume=True)
    with pytest.raises(BadFile, match="holds another, unfinished fold"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", convention="lycoris", resume=True)
    with pytest.raises(BadFile, match="holds another, unfinished fold"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", transposed=["h.4.*"], resume=True)
    report = lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", resume=True)
    assert len(report.changes) == len(report.kept) == 4
    assert report.changes == pytest.approx(dict(wanted.changes)) and report.kept == pytest.approx(dict(wanted.kept))
    assert len(seen) == 4 and seen[2] == seen[3], "only the shard that was interrupted is done again"
    assert bytes_of(tmp_path / "out") == bytes_of(tmp_path / "wanted")
    assert sorted(os.listdir(tmp_path)) == ["model", "out", "wanted"]


@pytest.mark.parametrize("resume", [False, True])
def test_what_is_rounded_away_is_refused_after_any_number_of_tries(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    seen: list[str] = []
    original = lyc_fx.checkpoint.fold.run_jobs  # type: ignore[attr-defined]

    def counting(source: Path, *arguments: object, **options: object) -> object:
        seen.append(source.name)
        return original(source, *arguments, **options)

    monkeypatch.setattr(lyc_fx.checkpoint.fold, "run_jobs", counting)
    for _ in range(2):
        with pytest.raises(BadAdapter, match="of the change is left after rounding"):
            lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", 1e-5, resume=resume)
        assert sorted(os.listdir(tmp_path)) == ([".out.resume", "model"] if resume else ["model"])
    assert len(set(seen)) == 3 and len(seen) == (3 if resume else 6)
    with pytest.warns(NothingChanged):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", 1e-5, resume=resume, lossy=True)
    assert len(seen) == (3 if resume else 9)
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    assert not [path for path in (tmp_path / "out").rglob(".*")]


def test_what_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(BadFile, match="full: exists"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "full")
    with pytest.raises(BadFile, match=r"is inside .*, which is an input"):
        lyc_fx.fold_checkpoint(model, adapters(), model / "out")
    with pytest.raises(BadAdapter, match="no rounding 'up': use"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out", rounding="up")  # type: ignore[arg-type]
    shutil.copy(model / "model-0.safetensors", model / "again.safetensors")
    with pytest.raises(BadFile, match=r"h\.0\.fc\.weight is also in"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out")
    (model / "again.safetensors").unlink()
    (model / "model-1.safetensors").unlink()
    with pytest.raises(BadFile, match=r"1 of its shards are missing: model-1\.safetensors"):
        lyc_fx.fold_checkpoint(model, adapters(), tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["full", "model"]


def test_a_disk_that_errs_is_found_when_it_is_read_back(model: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    original = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: original(fd, bytes(len(data)), at))
    with pytest.raises(BadFile, match="is not what was written"):
        lyc_fx.fold_checkpoint(
            model / "model-0.safetensors", adapters(), tmp_path / "out.safetensors", strict=False, verify=True
        )
    assert not (tmp_path / "out.safetensors").exists()
