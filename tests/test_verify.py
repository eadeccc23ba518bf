"""The verifier: a pass that breaks something is caught, named, and shown."""

import re
from dataclasses import dataclass
from typing import final

import pytest
import torch
from nets import CASES
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_base import PassBase, PassResult

import lyc_fx
from lyc_fx.errors import InvalidGraph
from lyc_fx.graph import pipeline
from lyc_fx.graph.copies import set_tensor
from lyc_fx.graph.rewrite import Emit
from lyc_fx.graph.symbolic import difference

aten = torch.ops.aten
CONV = next(c for c in CASES if c.name == "conv2d-1x1")


def captured() -> GraphModule:
    return lyc_fx.capture(CONV.net(), (CONV.x(),), dynamic_shapes={"x": CONV.dims})


@final
@dataclass(frozen=True)
class Breaks(PassBase):
    """Replaces the layer by another operator on the same operands."""

    how: str

    def call(self, gm: GraphModule) -> PassResult:
        [conv] = gm.graph.find_nodes(op="call_function", target=aten.conv2d.default)
        emit = Emit(gm, at=conv, like=conv, by="test")
        x, weight, bias = conv.args[:3]
        if self.how == "padding":
            new = emit(aten.conv2d.default, x, weight, bias, [2, 2], [1, 1])
        elif self.how == "dtype":
            new = emit(aten.to.dtype, emit(aten.conv2d.default, x, weight, bias, [2, 2]), torch.float32)
        elif self.how == "rank":
            new = emit(aten.unsqueeze.default, emit(aten.conv2d.default, x, weight, bias, [2, 2]), 0)
        elif self.how == "wrong value":
            new = emit(aten.conv2d.default, x, weight, bias, [2, 2])
            new.meta["val"] = new.meta["val"][:1]
        elif self.how == "weight":
            set_tensor(gm, "layer.weight", torch.nn.Parameter(torch.randn(15, 6, 1, 2, dtype=torch.float64)))
            return PassResult(gm, True)
        elif self.how == "order":
            output = next(n for n in gm.graph.nodes if n.op == "output")
            output.append(conv)
            return PassResult(gm, True)
        elif self.how == "refused":
            new = emit(aten.conv2d.default, x, weight, bias, [2, 2])
            new.update_kwarg("groups", 5)
        else:
            new = emit(aten.conv2d.default, x, weight, bias, [2, 2], [0, 0], [3, 3])  # 1×1: dilation means nothing
        conv.replace_all_uses_with(new, propagate_meta=False)
        gm.graph.erase_node(conv)
        return PassResult(gm, True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("padding", r"has another shape: dimension 2: .* they differ at s\d+ = \d+.*is x\.shape\[2\]"),
        ("dtype", r"has dtype torch.float32, not torch.float64"),
        ("rank", r"has another shape"),
        ("wrong value", r"has another shape"),
        ("weight", r"the stored tensor has another shape: dimension 3: 1 against 2"),
        ("order", r"was used before it has been defined|used before"),
        ("refused", r"refuses its arguments"),
    ],
)
def test_a_broken_pass_is_caught_and_named(how: str, message: str) -> None:
    program = captured()
    before = lyc_fx.show(program)
    with pytest.raises(InvalidGraph, match=r"after pass Breaks") as caught:
        pipeline.run(program, Breaks(how))
    assert re.search(message, str(caught.value), re.DOTALL), str(caught.value)
    if how not in ("order",):
        assert ">>" in str(caught.value)
    assert lyc_fx.show(program) == before


def test_a_sound_pass_is_let_through() -> None:
    program = captured()
    after = pipeline.run(program, Breaks("nothing"))
    assert torch.equal(after(CONV.x()), program(CONV.x()))


def test_shapes_are_proved_or_a_counterexample_is_found() -> None:
    program = captured()
    [x] = program.graph.find_nodes(op="placeholder")
    batch, _, height, width = x.meta["val"].shape
    assert difference((batch, height * 2), (batch, height + height)) is None
    assert difference(((height - 1) // 2 + 1,), ((height + 1) // 2,)) is None
    gap = difference((batch, (height - 1) // 2), (batch, (height - 3) // 2))
    assert gap is not None and gap.dimension == 1 and gap.counterexample is not None
    gap = difference((height,), (width,))
    assert gap is not None and gap.counterexample is not None and len(set(gap.counterexample.values())) == 2
    assert difference((1, 2), (1, 2)) is None
    assert "2 against 3" in str(difference((2,), (3,)))
    assert str(difference((2,), (2, 3))) == "(2) against (2, 3)"


def test_proving_adds_no_guard() -> None:
    program = captured()
    [x] = program.graph.find_nodes(op="placeholder")
    environment = x.meta["val"].fake_mode.shape_env
    before = len(environment.guards)
    difference((x.meta["val"].shape[2],), (x.meta["val"].shape[3],))
    assert len(environment.guards) == before
