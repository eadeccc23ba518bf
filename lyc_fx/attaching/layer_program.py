"""The program of one layer with its adapters: captured, spliced, lowered and staged, as a plain function of tensors."""

import copy
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from inspect import signature
from typing import Any, Literal, Self, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from lyc_fx.adapters.padding import Room
from lyc_fx.attaching.calls import LayerCall, torchs_class
from lyc_fx.attaching.forwards import Forward, chained
from lyc_fx.base.quantizers import quantized
from lyc_fx.binding.bound import Binding
from lyc_fx.binding.fitting import Weight
from lyc_fx.graph import pipeline
from lyc_fx.graph.capture import capture
from lyc_fx.graph.insertion import Insertion
from lyc_fx.graph.merged_weight import MergedWeight
from lyc_fx.graph.places import Places
from lyc_fx.graph.plan import Plan
from lyc_fx.graph.program import BANK, facts, remember, tensors
from lyc_fx.graph.targets import targets
from lyc_fx.graph.verbs import lower, stage

How = Literal["chained", "resident", "trainable"]
"""With chains and staged values; with a merged weight; with chains alone, of factors that can be trained"""


@final
@dataclass(frozen=True, eq=False)
class LayerProgram:
    """What layers share that are called alike and have adapters of the same form."""

    call: LayerCall
    graph: Graph
    """Of the input, and the tensors `reads`"""
    reads: tuple[str, ...]
    """Names of the layer's own parameters, and of its bank's tensors"""
    bank: Mapping[str, Tensor]
    """The bank's tensors, without values"""
    merged: Mapping[str, MergedWeight]
    """The places of the adapters, by parameter"""
    staging: Graph | None
    options: tuple[Any, ...] = ()
    """`call.options` of the layer"""

    @cached_property
    def run(self) -> Callable[..., Tensor]:
        """The graph as a function."""
        return GraphModule(nn.Module(), self.graph).forward

    @cached_property
    def staged_from(self) -> list[str]:
        """The names of the layer's own tensors that staged values are computed from."""
        nodes = self.staging.find_nodes(op="get_attr") if self.staging is not None else ()
        return [name for name in dict.fromkeys(str(n.target) for n in nodes) if not name.startswith(f"{BANK}.")]

    @cached_property
    def forward(self) -> Forward:
        """One function for all layers of the program, so that blocks which are alike can share what is compiled."""
        return chained(self)

    @classmethod
    def of(
        cls,
        captured: GraphModule,
        call: LayerCall,
        binding: Binding,
        weights: Mapping[str, Weight],
        room: Room,
        how: How,
        options: tuple[Any, ...],
        *,
        always: bool = False,
    ) -> Self:
        """From a layer's program without adapters, and the adapters of its parameters.

        `always`: chains even where a merged weight would be less work.
        """
        program = pipeline.run(captured, Insert(binding, weights, room))
        program = program if how == "resident" else lower(program, Plan.default(program) if always else None)
        program = program if how == "trainable" else stage(program)
        places = facts(program).places
        assert places is not None
        graph, reads = as_function(program)
        held = {name: tensor for name, tensor in tensors(program).items() if name.startswith(f"{BANK}.")}
        empty = {name: without_values(tensor) for name, tensor in held.items()}
        return cls(call, graph, reads, empty, places.merged, facts(program).staging, options)


@final
@dataclass(frozen=True)
class Insert(PassBase):
    """Splice, of what is bound to the parameters of a layer."""

    binding: Binding
    weights: Mapping[str, Weight]
    room: Room

    def call(self, gm: GraphModule) -> PassResult:
        found, insertion = targets(gm), Insertion(gm, self.binding, self.room)
        merged = {name: insertion.insert(name, self.weights[name], found[name]) for name in self.binding.targets}
        remember(gm, places=Places(self.room, merged))
        return pipeline.done(gm, "splice", len(merged))


def layer_key(module: nn.Module) -> Hashable:
    """What is equal for layers that one captured program is for."""
    if (held := quantized(module)) is not None:
        return type(module), options(module), held.form, module._parameters.get("bias") is None
    own = tuple((n, tuple(p.shape), p.dtype, p.device) for n, p in module._parameters.items() if p is not None)
    return type(module), options(module), own


def options(module: nn.Module) -> str:
    """What a layer of torch does besides its parameters, as text: stride, padding, padding mode and so on."""
    known: Any = torchs_class(module) or nn.Module
    return str(known.extra_repr(module))


def captured_layer(layer: nn.Module, call: LayerCall) -> GraphModule:
    """Capture a layer without its hooks; its parameters are shared."""
    bare = copy.copy(layer)
    bare.__dict__.pop("forward", None)
    bare._modules = {}
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        setattr(bare, name, OrderedDict())
    named = next(iter(signature(bare.forward).parameters))
    return capture(bare, (call.example(layer),), dynamic_shapes={named: call.dims}, check=False)


def as_function(program: GraphModule) -> tuple[Graph, tuple[str, ...]]:
    """Make a graph of the same operators whose inputs are the program's, and then the tensors of the names returned."""
    graph, copies = Graph(), dict[Node, Node]()
    reads = list(dict.fromkeys(str(node.target) for node in program.graph.find_nodes(op="get_attr")))
    for node in program.graph.find_nodes(op="placeholder"):
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    inputs = {name: graph.placeholder(f"tensor_{position}") for position, name in enumerate(reads)}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            copies[node] = inputs[str(node.target)]
        elif node.op == "call_function":
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results: Any = program.graph.output_node().args[0]
    graph.output(copies[results[0] if isinstance(results, (tuple, list)) else results])
    return graph, tuple(reads)


def without_values(tensor: Tensor) -> Tensor:
    """Keep shape, strides, dtype and whether it is a parameter."""
    empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
