"""Each structure's chain: its text, its near misses with their reasons, and what may be done with the result."""

import pytest
import torch
from lowering import CONV, EVEN, GROUPED, LINEAR, adapted, fired, made, misses, same_numbers
from nets import CASES, Case

import lyc_fx
from lyc_fx.errors import InvalidGraph
from lyc_fx.families import Adapter

NORM = next(c for c in CASES if c.name == "layer-norm")
POINT = next(c for c in CASES if c.name == "conv2d-1x1")
TALL = next(c for c in CASES if c.name == "conv2d-even")
SAME = next(c for c in CASES if c.name == "conv2d-same")
STRUCTURES: dict[str, tuple[Case, Adapter]] = {
    "low rank": (SAME, made("locon", SAME)),
    "Tucker": (CONV, made("locon", CONV, "mid")),
    "Kronecker": (LINEAR, made("lokr", LINEAR)),
    "Kronecker on a convolution": (CONV, made("lokr", CONV, "w1_a", "w1_b", "w2")),
    "Khatri–Rao": (LINEAR, made("loha", LINEAR, rank=2)),
    "Khatri–Rao of Tucker": (SAME, made("loha", SAME, "t1", "t2", rank=2)),
    "input map": (CONV, made("glora", CONV)),
    "columns": (CONV, made("ia3", CONV)),
    "rows": (LINEAR, made("ia3", LINEAR, rank=2)),
    "rotation": (EVEN, made("diag-oft", EVEN, "rescale")),
    "butterfly": (EVEN, made("boft", EVEN)),
    "rotation on a convolution": (GROUPED, made("diag-oft", GROUPED, "rescale")),
    "butterfly on a convolution": (TALL, made("boft", TALL, "rescale")),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_a_chain_compiles_and_cannot_be_folded(name: str) -> None:
    case, adapter = STRUCTURES[name]
    before = adapted(case, adapter)
    lowered = lyc_fx.lower(before)
    assert fired(lowered) == 1 and not misses(lowered)
    with pytest.raises(InvalidGraph, match="lower moves adapters to the activations"):
        lyc_fx.fold(lowered)
    torch._dynamo.reset()
    same_numbers(torch.compile(lowered, fullgraph=True, backend="aot_eager", dynamic=True), before, case)
