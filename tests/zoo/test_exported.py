"""Programs of real classes run in a process that has neither lyc-fx nor their libraries, to the bit."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_unflatten

import lyc_fx
from lyc_fx.exporting.interface import input_names
from lyc_fx.exporting.plain import plain
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
