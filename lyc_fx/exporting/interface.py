"""The inputs and outputs of a program by name: what a file without Python structures calls them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from lyc_fx.exporting.ranks import fixed_ranks
from lyc_fx.graph.inputs import pytree_info
from lyc_fx.graph.program import facts
from lyc_fx.graph.symbolic import symbol_names


@final
@dataclass(frozen=True)
class Value:
    """One tensor that goes in or comes out."""

    name: str
    """Its path: `sample`, `past_key_values.layers.0.keys`, `adapter.0.fc.weight.up`"""
    dtype: str
    """As torch prints it, without `torch.`; or the class of a Python value, which is part of the program"""
    shape: tuple[int | str, ...]
    """A number, or an expression in the names of sizes that may vary"""
    value: Any = None
    """Of a Python value"""

    @property
    def is_python(self) -> bool:
        """Whether this is no tensor, but a value that is part of the program."""
        return not hasattr(torch, self.dtype)


def inputs(program: GraphModule, exported: ExportedProgram) -> tuple[Value, ...]:
    """All flat inputs of a plain program, in order, with the sizes that vary in what was exported from it."""
    given = set(exported.graph_signature.user_inputs)
    nodes = [node for node in exported.graph_module.graph.find_nodes(op="placeholder") if node.name in given]
    tensors = iter([value for node in nodes if isinstance(value := node.meta.get("val"), Tensor)])
    fixed = fixed_ranks(exported)
    own = [node.meta.get("val") for node in program.graph.find_nodes(op="placeholder")]
    values = [next(tensors) if isinstance(value, Tensor) else value for value in own]
    sizes = symbol_names(exported.graph_module) | {symbol: str(size) for symbol, size in fixed.items()}
    return tuple(_described(sizes, input_names(program), values))


def bounds(program: GraphModule) -> dict[str, tuple[int | None, int | None]]:
    """The smallest and the largest of each size that may vary, by its name; None for no bound.

    A least size of 2 is what torch assumes of any size, and 1 is taken too.
    """
    names = symbol_names(program)
    found = {names.get(symbol, symbol): known for symbol, known in facts(program).ranges.items()}
    return {n: (least if least > 2 else None, greatest) for n, (least, greatest) in found.items()}


def input_names(program: GraphModule) -> list[str]:
    """The paths of all flat inputs of a plain program, in order."""
    info = pytree_info(program)
    args, kwargs = info.in_spec.children()
    named = dict(zip(info.orig_args, args.children(), strict=False)) | dict(
        zip(kwargs.context, kwargs.children(), strict=True)
    )
    return [name for each, spec in named.items() for name in _paths(each, spec)]


def outputs(program: GraphModule) -> tuple[Value, ...]:
    """All flat outputs of a plain program, in order; a single one is called `output`."""
    spec = pytree_info(program).out_spec
    names = ["output"] if spec.is_leaf() else [n.removeprefix("output.") for n in _paths("output", spec)]
    results: Any = program.graph.output_node().args[0]
    leaves = pytree.tree_leaves(results)
    values = [getattr(each, "meta", {}).get("val", each) for each in leaves]
    return tuple(_described(symbol_names(program), names, values))


def _paths(name: str, spec: pytree.TreeSpec) -> Iterator[str]:
    if spec.is_leaf():
        yield name
        return
    keys = spec.context if spec.type is dict else range(spec.num_children)
    for key, child in zip(keys, spec.children(), strict=True):
        yield from _paths(f"{name}.{key}", child)


def _described(sizes: Mapping[str, str], names: Sequence[str], values: Sequence[Any]) -> Iterator[Value]:
    for name, value in zip(names, values, strict=True):
        if isinstance(value, Tensor):
            spelled = (size if isinstance(size, int) else _spelled(size, sizes) for size in value.shape)
            shape = tuple(int(size) if isinstance(size, str) and size.isdigit() else size for size in spelled)
            yield Value(name, str(value.dtype).removeprefix("torch."), shape)
        else:
            yield Value(name, type(value).__name__, (), value if isinstance(value, (bool, int, float, str)) else None)


def _spelled(size: torch.SymInt, sizes: Mapping[str, str]) -> str:
    """`2*s77` as `2*input_ids.shape[1]`."""
    return re.sub(r"\w+", lambda word: sizes.get(word[0], word[0]), str(size))
