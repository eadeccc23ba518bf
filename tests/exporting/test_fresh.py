"""Programs of real classes in a process without lyc-fx and their libraries; and files that do not pass there."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from exporting.models import captured, lora
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_unflatten

import lyc_fx
from lyc_fx.errors import Unsupported
from lyc_fx.exporting.exported import to_exported_program
from lyc_fx.exporting.interface import input_names
from lyc_fx.exporting.plain import plain
from lyc_fx.graph.program import facts, remember
from lyc_fx.graph.trials import trials
from tests.zoo.adapted import adapters_for
from tests.zoo.case import Case
from tests.zoo.diffusers_models import CASES as OF_DIFFUSERS
from tests.zoo.roads import weights_of
from tests.zoo.test_caches import LLAMA, _decode
from tests.zoo.transformers_models import CASES as OF_TRANSFORMERS

SCRIPT = """
import sys
for missing in ("lyc_fx", "transformers", "diffusers"):
    sys.modules[missing] = None
import torch
from torch.utils._pytree import tree_leaves, tree_unflatten
for path in sys.argv[1:]:
    trials = torch.load(path + ".trials", weights_only=True)
    module = torch.export.load(path).module()
    for (args, kwargs), wanted in trials:
        torch.manual_seed(0)  # a VAE samples
        with torch.no_grad():
            found = [each for each in tree_leaves(module(*args, **kwargs)) if isinstance(each, torch.Tensor)]
        assert len(found) == len(wanted) and all(map(torch.equal, found, wanted)), path
    print(path, len(trials))
"""
"""Bits, at the sizes of the capture and others"""


def programs() -> dict[str, GraphModule]:
    cases = {case.name: case for case in (*OF_TRANSFORMERS, *OF_DIFFUSERS)}
    made = {}
    for name in ("clip", "whisper", "vae"):
        case = cases[name]
        made[name] = folded(case, case.call(0))
    made["decoding step"] = folded(LLAMA, _decode(LLAMA, LLAMA.model(), 0))
    return made


def folded(case: Case, inputs: dict[str, Any]) -> GraphModule:
    model = case.model()
    program = lyc_fx.capture(model, (), inputs, case.shapes, check=False)
    return lyc_fx.fold(lyc_fx.splice(program, adapters_for(weights_of(case, model), torch.float64), 0.7))


def test_real_classes_run_without_their_libraries(tmp_path: Path) -> None:
    paths = []
    for name, program in programs().items():
        path = tmp_path / f"{name.replace(' ', '-')}.pt2"
        lyc_fx.export(program, path, check=False)
        bare = plain(program)
        spec = bare.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]
        found = [(given, called(bare, *given)) for given in (tree_unflatten(flat, spec) for flat in trials(bare))]
        assert len(found) == 2, "no other sizes than the captured ones were tried"
        torch.save(found, f"{path}.trials")
        paths.append(str(path))
    ran = subprocess.run([sys.executable, "-P", "-c", SCRIPT, *paths], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert len(ran.stdout.splitlines()) == len(paths) == 4
    decoding = lyc_fx.bind(paths[-1])
    assert input_names(plain(programs_of_decoding())) == [value.name for value in decoding.manifest.inputs]
    assert decoding.manifest.inputs[1].name == "past_key_values.layers.0.keys"


def programs_of_decoding() -> GraphModule:
    return lyc_fx.capture(LLAMA.model(), (), _decode(LLAMA, LLAMA.model(), 0), "auto", check=False)


def called(program: GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(program(*args, **kwargs)) if isinstance(leaf, Tensor)]


def test_a_file_that_computes_something_else_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyc_fx.exporting import export

    wrong = lyc_fx.fold(lyc_fx.splice(captured(), lora(3, 2.0), 0.05))
    monkeypatch.setattr(export, "_exported", lambda program, path, real=export._exported: real(plain(wrong), path))
    with pytest.raises(Unsupported, match="in a fresh process the file computes something else"):
        lyc_fx.export(captured(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


def test_a_file_that_does_not_load_there_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lyc_fx.exporting import export

    monkeypatch.setattr(export, "plain", lambda program: program)  # the test's own class of results stays
    with pytest.raises(Unsupported, match=r"does not run in a fresh process: .*Result"):
        lyc_fx.export(captured(), tmp_path / "model.pt2")
    assert not list(tmp_path.iterdir())


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(nn.functional.dropout(x, 0.3, training=True))


def test_random_numbers_are_the_same_there(tmp_path: Path) -> None:
    program = lyc_fx.capture(Noisy().eval(), (torch.randn(40, 6),), check=False)
    lyc_fx.export(program, tmp_path / "model.pt2")


def test_another_rank_is_tried_where_it_may_vary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose ranks are fixed, which says that they vary, gets no name."""
    from lyc_fx.exporting import export

    lifted = lyc_fx.slots(lyc_fx.splice(captured(), lora(3, 2.0), rank=4))

    def fixed(program: GraphModule, path: object) -> Any:
        slots = facts(program).slots
        assert slots is not None
        remember(program, slots=replace(slots, ranks={}))
        return to_exported_program(program)

    lyc_fx.export(lifted, tmp_path / "model.pt2")
    said = lyc_fx.bind(tmp_path / "model.pt2").manifest
    monkeypatch.setattr(export, "_exported", fixed)
    monkeypatch.setattr(export.Manifest, "of", lambda *_: said)
    with pytest.raises(Unsupported, match=r"other.pt2: nothing was written: the file does not run"):
        lyc_fx.export(lifted, tmp_path / "other.pt2")
    assert [each.name for each in tmp_path.iterdir()] == ["model.pt2"]
