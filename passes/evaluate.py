"""evaluate: the exact evaluation graph of a program that was captured in training mode.

Dropout, batch norm and recurrent layers stop training, attention loses its dropout, and batch counters stand still. The
other way round is impossible: an evaluation graph does not know its dropout probabilities any more. A model's own
`if self.training:` is fixed at capture.
"""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.graph.capture.mode import evaluates
from lyc_fx.graph.pipeline import done
from lyc_fx.graph.rewrite import arguments

aten = torch.ops.aten

_MODES = ("train", "training")
"""What operators call their flag: dropout, batch norm, recurrent layers, and what these are decomposed into"""
_INSTANCE_NORM = aten.instance_norm.default
_ATTENTION = aten.scaled_dot_product_attention.default


@final
@dataclass(frozen=True)
class Evaluate(PassBase):
    """No options."""

    def call(self, gm: GraphModule) -> PassResult:
        fired = sum(_evaluated(gm, node) for node in list(gm.graph.nodes))
        for module in gm.modules():
            module.training = False
        evaluates(gm)
        return done(gm, "evaluate", fired)


def _evaluated(gm: GraphModule, node: Node) -> bool:
    if node.op != "call_function":
        return False
    if isinstance(node.target, torch._ops.OpOverload):
        for name in _MODES:
            if any(argument.name == name for argument in node.target._schema.arguments):
                return _set(node, name, False)
    if node.target is _ATTENTION:
        return _set(node, "dropout_p", 0.0)
    if node.target is _INSTANCE_NORM and node.args[3] is not None:
        return _set(node, "use_input_stats", False)
    if node.target in (aten.add_.Tensor, aten.add.Tensor) and _counts_batches(node):
        node.replace_all_uses_with(node.args[0], propagate_meta=False)  # type: ignore[arg-type]  # a get_attr node
        gm.graph.erase_node(node)
        return True
    return False


def _counts_batches(node: Node) -> bool:
    counter = node.args[0]
    if not isinstance(counter, Node) or counter.op != "get_attr":
        return False
    return str(counter.target).rpartition(".")[2] == "num_batches_tracked"


def _set(node: Node, name: str, value: Any) -> bool:
    """Give an argument a value; whether it had another one."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]  # an OpOverload
    filled = list(arguments(node))
    position = names.index(name)
    if filled[position] == value:
        return False
    if position < len(node.args):
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)
    return True
