"""Quantized layers with adapters beside them: their own call stays, and what the adapters do is captured without it.

A plain layer of the same shape, with the weight dequantized, is captured, spliced and lowered like any other. Then each
call of its base, `layer(x, W, b)`, becomes a call of the quantized layer, of which the program no longer reads W.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node

from lyc_fx.attaching.layer_program import LayerProgram
from lyc_fx.base.quantizers import Quantized, quantized
from lyc_fx.graph.program import BANK

OWN = f"{BANK}.own"
"""What a program calls `Own` of its layer among the tensors that it reads"""
_WEIGHT, _BIAS = "weight", "bias"
aten = torch.ops.aten


@final
class Own:
    """A layer as it runs without adapters. It is kept in the layer's bank."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._bare = _without_bias(module)

    def call(self, x: Tensor) -> Tensor:
        """`layer(x)`, by the code of the layer's class."""
        return type(self.module).forward(self.module, x)

    def call_without_bias(self, x: Tensor) -> Tensor:
        """The same of a layer that has the same weight and no bias."""
        bare = self._bare
        if bare.training != self.module.training or bare._parameters[_WEIGHT] is not self.module._parameters[_WEIGHT]:
            bare = self._bare = _without_bias(self.module)
        return type(bare).forward(bare, x)

    def weight(self) -> Tensor:
        """The weight, dequantized."""
        return value_of(self.module, _WEIGHT)


def _without_bias(module: nn.Module) -> nn.Module:
    bare = copy.copy(module)
    bare._parameters, bare._modules = {**module._parameters, _BIAS: None}, {}
    return bare


def value_of(module: nn.Module, name: str) -> Tensor:
    """A parameter of a module as a plain tensor."""
    held = quantized(module, name)
    found = getattr(module, name) if held is None else held.dequantized(held.dtype)
    assert isinstance(found, Tensor)
    return found


def plain(module: nn.Module) -> nn.Module:
    """The module, or a layer like it without quantization, whose weight has no values."""
    held = quantized(module)
    if held is None:
        return module
    weight = nn.Parameter(torch.empty(held.shape, dtype=held.dtype, device="meta"), requires_grad=False)
    bias = module._parameters.get(_BIAS)
    if isinstance(module, nn.Linear):
        made: nn.Module = nn.Linear(held.shape[1], held.shape[0], bias is not None, device="meta", dtype=held.dtype)
    else:
        made = copy.copy(module)
        made._parameters = dict(module._parameters)
    made._parameters[_WEIGHT] = weight
    if bias is not None:
        made._parameters[_BIAS] = nn.Parameter(bias.detach().to(held.dtype), requires_grad=False)
    return made.train(module.training)


def dequantized(module: nn.Module) -> nn.Module:
    """The module, or a layer like it whose weight is dequantized."""
    layer = plain(module)
    if layer is not module:
        layer._parameters[_WEIGHT] = nn.Parameter(value_of(module, _WEIGHT), requires_grad=False)
    return layer


def beside(made: LayerProgram, held: Quantized) -> LayerProgram:
    """The program with calls of the quantized layer in the place of those of its plain stand-in."""
    graph, copies = Graph(), dict[Node, Node]()
    graph.output(graph.graph_copy(made.graph, copies))
    x, *tensors = graph.find_nodes(op="placeholder")
    named = dict(zip(made.reads, tensors, strict=True))
    with graph.inserting_after(tensors[-1] if tensors else x):
        own = graph.placeholder("own")
    biased = held.module._parameters.get(_BIAS) is not None
    calls = _call_own(graph, x, own, named, biased=biased)
    if made.call.multiplies:
        _cast(graph, x, calls, held.dtype)
    if (weight := named.get(_WEIGHT)) is not None and weight.users:
        with graph.inserting_after(own):
            weight.replace_all_uses_with(graph.call_method("weight", (own,)))
    graph.eliminate_dead_code()
    named[OWN] = own
    for node in [node for node in named.values() if not node.users]:
        graph.erase_node(node)
    reads = tuple(name for name, node in named.items() if not node._erased)
    return replace(made, graph=graph, reads=reads)


def _call_own(graph: Graph, x: Node, own: Node, named: Mapping[str, Node], *, biased: bool) -> list[Node]:
    """Let the layer itself be called where the program calls its plain stand-in; returns these calls."""
    weight, bias, calls = named.get(_WEIGHT), named.get(_BIAS), []
    for node in list(weight.users) if weight is not None else []:
        if (found := _base_call(node, weight)) is None:
            continue
        given, added = found
        whole = added is bias and (added is not None) == biased
        with graph.inserting_before(node):
            y = graph.call_method("call" if whole else "call_without_bias", (own, given))
            calls.append(y)
            if added is not None and not whole:
                y = graph.call_function(aten.add.Tensor, (y, added))
        node.replace_all_uses_with(y)
        graph.erase_node(node)
    return calls


def _base_call(node: Node, weight: Node | None) -> tuple[Node, Node | None] | None:
    """The inputs and the bias of a layer that reads its own weight."""
    arguments: Any = node.args
    if node.target is aten.linear.default and arguments[1] is weight:
        return arguments[0], arguments[2] if len(arguments) > 2 else None
    if node.target is aten.embedding.default and arguments[0] is weight:
        return arguments[1], None
    return None


def _cast(graph: Graph, x: Node, calls: Sequence[Node], dtype: torch.dtype) -> None:
    """Chains run in the dtype that they were made for; the layer gets and gives what it would without adapters."""
    last = graph.find_nodes(op="placeholder")[-1]
    with graph.inserting_after(last):
        wide = graph.call_method("to", (x, dtype))
    x.replace_all_uses_with(wide, delete_user_cb=lambda user: user is not wide and user not in calls)
    for call in calls:
        given: Any = call.args[1]
        users = list(call.users)
        with graph.inserting_before(call):
            if given is not x:
                call.update_arg(1, graph.call_method("type_as", (given, x)))
        with graph.inserting_after(call):
            y = graph.call_method("to", (call, dtype))
        for user in users:
            user.replace_input_with(call, y)
    result = graph.output_node().args[0]
    with graph.inserting_before(graph.output_node()):
        graph.output_node().update_arg(0, graph.call_method("type_as", (result, calls[0] if calls else x)))
