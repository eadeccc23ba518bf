"""Further passes in `lower`: any PassBase of torch, run last on a copy, and verified as lyc-fx's own are."""

from dataclasses import dataclass
from typing import final

import pytest
import torch
from lowering import LINEAR, adapted, made, same_numbers
from torch.fx import Graph, GraphModule
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.fx.passes.infra.pass_base import PassBase, PassResult

import lyc_fx
from lyc_fx.errors import CaptureError, InvalidGraph, WrongArgument
from lyc_fx.graph.rewrite import Emit

aten = torch.ops.aten


def program() -> GraphModule:
    return adapted(LINEAR, made("locon", LINEAR))


@final
@dataclass(frozen=True)
class Twice(PassBase):
    """Doubles what comes out, by a node without a fake value, and halves it again, unless it is `wrong`."""

    wrong: bool = False

    def call(self, gm: GraphModule) -> PassResult:
        [output] = gm.graph.find_nodes(op="output")
        [old] = output.all_input_nodes
        with gm.graph.inserting_before(output):
            doubled = gm.graph.call_function(aten.add.Tensor, (old, old))
        emit = Emit(gm, at=output, like=old, by="twice")
        if not self.wrong:
            doubled.meta["val"] = old.meta["val"]
        new = doubled if self.wrong else emit(aten.sub.Tensor, doubled, old, alpha=1)
        output.replace_input_with(old, new)
        return PassResult(gm, True)


@final
class Transposes(PassBase):
    """Gives the output another shape."""

    def call(self, gm: GraphModule) -> PassResult:
        [output] = gm.graph.find_nodes(op="output")
        [old] = output.all_input_nodes
        with gm.graph.inserting_before(output):
            output.replace_input_with(old, gm.graph.call_function(aten.unsqueeze.default, (old, 0)))
        return PassResult(gm, True)


@final
class Says(PassBase):
    """Changes nothing, and returns nothing."""

    def call(self, gm: GraphModule) -> None:
        return None


def test_a_pass_runs_last_on_a_copy_and_is_in_the_history() -> None:
    before = program()
    text = lyc_fx.show(before)
    after = lyc_fx.lower(before, passes=[Twice(), Says()], check=True)
    same_numbers(after, before, LINEAR)
    assert lyc_fx.show(before) == text and "sub" in lyc_fx.show(after)
    assert [(step.name, step.fired) for step in lyc_fx.history(after)[-2:]] == [("Twice", 1), ("Says", 0)]
    [node] = after.graph.find_nodes(op="call_function", target=aten.sub.Tensor)
    assert node.kwargs == {"alpha": 1} and node.meta["lyc_fx"] == "twice"


def test_torch_s_own_pass_which_returns_another_module() -> None:
    """CSE: the program stays what it was, with its keys, its calling convention and its history."""
    before = program()
    plain = lyc_fx.lower(before)
    after = lyc_fx.lower(before, passes=[Twice(), Doubles(), CSEPass()], check=True)
    same_numbers(after, plain, LINEAR)
    assert list(after.state_dict()) == list(plain.state_dict())
    assert [step.name for step in lyc_fx.history(after)][-3:] == ["Twice", "Doubles", "CSEPass"]
    assert lyc_fx.history(after)[-1].fired == 1
    assert len(after.graph.find_nodes(op="call_function", target=aten.relu.default)) == 1
    with pytest.raises(CaptureError, match="Guard failed"):  # its checks of inputs are still there
        after(torch.randn(2, 5, 7, dtype=torch.float64))


@final
class Doubles(PassBase):
    """Computes `relu(x)` twice for nothing but to be found again; the result stays: y + relu(x) - relu(x)."""

    def call(self, gm: GraphModule) -> PassResult:
        [output] = gm.graph.find_nodes(op="output")
        [old] = output.all_input_nodes
        emit = Emit(gm, at=output, like=old, by="doubles")
        first, second = (emit(aten.relu.default, old) for _ in range(2))
        new = emit(aten.sub.Tensor, emit(aten.add.Tensor, old, first), second)
        output.replace_input_with(old, new)
        return PassResult(gm, True)


def test_a_pass_that_changes_the_shape_is_named() -> None:
    with pytest.raises(InvalidGraph, match=r"after pass Transposes, at output: .* another shape"):
        lyc_fx.lower(program(), passes=[Transposes()])


def test_a_pass_that_changes_the_numbers_is_named_where_they_are_checked() -> None:
    lyc_fx.lower(program(), passes=[Twice(wrong=True)])
    with pytest.raises(InvalidGraph, match="pass Twice changes what the program computes"):
        lyc_fx.lower(program(), passes=[Twice(wrong=True)], check=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Says(), "passes is a list of passes, not Says"),
        (3, "passes is a list of passes, not int"),
        ([Says], "not the class Says: make one"),
        (["narrow"], "there is no pass 'narrow': none is installed or registered"),
        ([lambda gm: gm], "not function"),
    ],
)
def test_what_is_no_pass_is_an_error(given: object, words: str) -> None:
    with pytest.raises(WrongArgument, match=words):
        lyc_fx.lower(program(), passes=given)  # type: ignore[arg-type]  # that is the point


def test_a_node_that_refuses_its_arguments_is_named() -> None:
    @final
    class Refused(PassBase):
        def call(self, gm: GraphModule) -> PassResult:
            graph: Graph = gm.graph
            [output] = graph.find_nodes(op="output")
            [old] = output.all_input_nodes
            with graph.inserting_before(output):
                graph.call_function(aten.mm.default, (old, old))
            return PassResult(gm, True)

    with pytest.raises(InvalidGraph, match=r"after pass Refused, at mm\w*: aten.mm.default refuses its arguments"):
        lyc_fx.lower(program(), passes=[Refused()])
