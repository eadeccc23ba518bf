"""Helpers over a captured program: a plain `torch.fx.GraphModule` whose weights are `get_attr` nodes.

`node.meta["val"]` holds fake tensors; what lyc-fx itself knows of a program lies in `gm.meta["lyc_fx"]`.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from lyc_fx.errors import InvalidGraph, WrongArgument
from lyc_fx.report import Report
from lyc_fx.steps import Step

BANK = "lyc_fx"
"""The submodule that holds spliced factors and strengths."""
_META = "lyc_fx"


Range = tuple[int, int | None]
"""The least size and the greatest; None is no bound"""


@final
@dataclass(frozen=True)
class Facts:
    """What lyc-fx remembers of a captured program."""

    keys: tuple[str, ...] = ()
    """The model's own state-dict keys"""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Further names of tensors, whose module is registered twice, to the name that the graph uses"""
    ties: tuple[tuple[str, ...], ...] = ()
    """The names of tensors that had several in the model, those of `aliases` apart"""
    on_disk: Mapping[str, str] = field(default_factory=dict)
    """What checkpoints of the model's class call its parameters, to the names that they have"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Of the sizes that may vary, by symbol, as the capture had them"""
    guards: tuple[str, ...] = ()
    """Further conditions of the capture, as `torch.export` writes them"""
    report: Report | None = None
    """Of the last splice"""
    steps: tuple[Step, ...] = ()
    """The passes that have run, oldest first"""


def captured(program: Any) -> GraphModule:
    """The program itself. Raises WrongArgument for what is none."""
    if hasattr(program, "validate_inputs"):  # whose check of its inputs would fail in a program that is made of it
        raise WrongArgument(
            "this is what an ExportedProgram's module() returns: bring it, with inputs, or the ExportedProgram through "
            "lyc_fx.capture first"
        )
    if isinstance(program, GraphModule):
        return program
    kind = type(program).__name__
    if isinstance(program, (nn.Module, ExportedProgram)):
        raise WrongArgument(f"a captured program is expected, not {kind}: bring it through lyc_fx.capture first")
    raise WrongArgument(f"a captured program is expected first, not {kind}")


def facts(gm: GraphModule) -> Facts:
    """What lyc-fx remembers of this program."""
    found = gm.meta.get(_META, Facts())
    assert isinstance(found, Facts)
    return found


def remember(gm: GraphModule, **changes: Any) -> None:
    """Replace some of the program's facts."""
    gm.meta[_META] = replace(facts(gm), **changes)


def history(gm: GraphModule) -> tuple[Step, ...]:
    """The passes that have run on this program, with how often each fired and why rules did not match.

    Raises WrongArgument.
    """
    return facts(captured(gm)).steps


def fake_mode(gm: GraphModule) -> FakeTensorMode:
    """The mode of the program's fake tensors. Raises InvalidGraph for a program without them."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise InvalidGraph('the graph has no node.meta["val"]: bring it through lyc_fx.capture first')


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have, aliases included; by the modules' paths, whatever a class such as
    FSDP says of its own."""
    found: dict[str, Tensor] = dict(nn.Module.named_parameters(module, remove_duplicate=False))
    found.update(nn.Module.named_buffers(module, remove_duplicate=False))
    return found


def aliases(module: nn.Module) -> dict[int, list[str]]:
    """The names of each parameter or buffer, by the tensor's identity."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors(module).items():
        names[id(tensor)].append(name)
    return names


def module_aliases(model: nn.Module) -> dict[str, str]:
    """Further names of the tensors of modules that are registered more than once, to the first such name."""
    first: dict[tuple[int, str], str] = {}
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for leaf in (*module._parameters, *module._buffers):
            name = f"{path}.{leaf}" if path else leaf
            if first.setdefault((id(module), leaf), name) != name:
                found[name] = first[id(module), leaf]
    return found


@contextmanager
def without_autocast() -> Iterator[None]:
    """Graphs are made and evaluated in the dtypes that they name; a caller's autocast is for running them."""
    devices = {"cpu"} | ({found.type} if (found := torch.accelerator.current_accelerator()) is not None else set())
    with ExitStack() as stack:
        for device in sorted(devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def uncompiled(model: nn.Module) -> nn.Module:
    """The model in what `torch.compile(model)` returned, which has its names."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Whether every value of a floating dtype is one of another; torch has no common type for float8."""
    a, b = torch.finfo(wide), torch.finfo(narrow)
    return a.max >= b.max and a.smallest_normal <= b.smallest_normal and a.eps <= b.eps


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter, buffer or constant of this name."""
    path, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(path), leaf)
    if not isinstance(found, Tensor):
        raise InvalidGraph(f"{name} is a {type(found).__name__}, not a tensor")
    return found


def weights(gm: GraphModule) -> Iterator[Node]:
    """The `get_attr` nodes that read a tensor."""
    for node in gm.graph.find_nodes(op="get_attr"):
        if isinstance(node.meta.get("val"), Tensor):
            yield node


def owner(node: Node) -> tuple[str, str]:
    """Path and class of the module whose call made this node; empty where capture did not record it."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def fake(gm: GraphModule, tensor: Tensor) -> Tensor:
    """A fake stand-in of static shape in the program's fake mode."""
    result = fake_mode(gm).from_tensor(tensor, static_shapes=True)
    assert isinstance(result, torch.Tensor)
    return result
