"""Helpers for captured programs: plain `torch.fx.GraphModule`s whose weights are `get_attr` nodes.

`node.meta["val"]` holds fake tensors; what lyc-fx records about a program is in `gm.meta["lyc_fx"]`.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

from lyc_fx.binding.report import Report
from lyc_fx.errors import InvalidGraph, WrongArgument
from lyc_fx.graph.steps import Step

if TYPE_CHECKING:
    from lyc_fx.graph.places import Known, Places
    from lyc_fx.graph.slots import Slots

BANK = "lyc_fx"
"""The submodule that holds spliced factors and strengths."""
_META = "lyc_fx"


Range = tuple[int, int | None]
"""The smallest and the largest size; None for no upper bound"""


@final
@dataclass(frozen=True)
class Facts:
    """What lyc-fx records about a captured program."""

    keys: tuple[str, ...] = ()
    """The model's own state-dict keys"""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """From further names of tensors, whose module is registered more than once, to the names that the graph uses"""
    ties: tuple[tuple[str, ...], ...] = ()
    """The names of each tensor that had several in the model, apart from those in `aliases`"""
    on_disk: Mapping[str, str] = field(default_factory=dict)
    """From the parameters' names in checkpoints of the model's class to their names in the program"""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """The range of each dynamic size at capture, by its symbol"""
    guards: tuple[str, ...] = ()
    """Further conditions of the capture, as `torch.export` writes them"""
    report: Report | None = None
    """The report of the last splice"""
    sources: tuple[Mapping[str, Any], ...] = ()
    """The adapters that were spliced in, as `Stack.described` has them, in the order of their sets"""
    known: "Known | None" = None
    """What adapters can be bound to, where others can take the place of those spliced in"""
    places: "Places | None" = None
    """What `lyc_fx.exchange` can put other adapters into"""
    rebuilt: frozenset[str] = frozenset()
    """Weights that `stage` leaves to every call"""
    slots: "Slots | None" = None
    """What the inputs of a lifted program stand for"""
    styles: tuple[str, ...] = ()
    """The buffers that the columns of `strengths` stand for, where each sample has strengths of its own"""
    staging: Graph | None = None
    """Computes the staged values (`lyc_fx.graph.staging`)"""
    steps: tuple[Step, ...] = ()
    """The passes that have run, oldest first"""


def captured(program: Any) -> GraphModule:
    """Return the argument if it is a captured program. Raises WrongArgument for anything else."""
    if hasattr(program, "validate_inputs"):  # its own check of inputs would fail in a program made from it
        raise WrongArgument(
            "this is what an ExportedProgram's module() returns: bring the ExportedProgram, or this with inputs, "
            "through lyc_fx.capture first"
        )
    if isinstance(program, GraphModule):
        return program
    kind = type(program).__name__
    if isinstance(program, (nn.Module, ExportedProgram)):
        raise WrongArgument(f"a captured program is expected, not {kind}: bring it through lyc_fx.capture first")
    raise WrongArgument(f"a captured program is expected first, not {kind}")


def facts(gm: GraphModule) -> Facts:
    """Return what lyc-fx records about a program."""
    found = gm.meta.get(_META, Facts())
    assert isinstance(found, Facts)
    return found


def remember(gm: GraphModule, **changes: Any) -> None:
    """Replace some of the program's facts."""
    gm.meta[_META] = replace(facts(gm), **changes)


def history(gm: GraphModule) -> tuple[Step, ...]:
    """Return the passes that have run on a program, with how often each fired and why rules did not match.

    Raises WrongArgument for anything but a captured program.
    """
    return facts(captured(gm)).steps


def fake_mode(gm: GraphModule) -> FakeTensorMode:
    """Return the mode of the program's fake tensors. Raises InvalidGraph for a program without them."""
    for node in gm.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise InvalidGraph('the graph has no node.meta["val"]: bring it through lyc_fx.capture first')


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers, by every name, including aliases.

    Names follow the modules' paths, even in classes that override `named_parameters`, such as FSDP.
    """
    found: dict[str, Tensor] = dict(nn.Module.named_parameters(module, remove_duplicate=False))
    found.update(nn.Module.named_buffers(module, remove_duplicate=False))
    return found


def aliases(module: nn.Module) -> dict[int, list[str]]:
    """Return the names of each parameter and buffer, by the tensor's `id`."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, tensor in tensors(module).items():
        names[id(tensor)].append(name)
    return names


def module_aliases(model: nn.Module) -> dict[str, str]:
    """Return a mapping from further names of tensors, whose module is registered more than once, to the first name."""
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
    """Disable autocast, which a caller may have enabled for running programs, while graphs are made and evaluated."""
    devices = {"cpu"} | ({found.type} if (found := torch.accelerator.current_accelerator()) is not None else set())
    with ExitStack() as stack:
        for device in sorted(devices):
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the model inside the result of `torch.compile(model)`, or the model itself."""
    inner = getattr(model, "_orig_mod", model)
    assert isinstance(inner, nn.Module)
    return inner


def holds(wide: torch.dtype, narrow: torch.dtype) -> bool:
    """Return whether the floating dtype `wide` has every value of `narrow`; torch does not promote float8 types."""
    a, b = torch.finfo(wide), torch.finfo(narrow)
    return a.max >= b.max and a.smallest_normal <= b.smallest_normal and a.eps <= b.eps


def get_tensor(module: nn.Module, name: str) -> Tensor:
    """Return the parameter, buffer or constant with this name. Raises InvalidGraph if it is not a tensor."""
    path, _, leaf = name.rpartition(".")
    found = getattr(module.get_submodule(path), leaf)
    if not isinstance(found, Tensor):
        raise InvalidGraph(f"{name} is a {type(found).__name__}, not a tensor")
    return found


def weights(gm: GraphModule) -> Iterator[Node]:
    """Yield the `get_attr` nodes that read a tensor."""
    for node in gm.graph.find_nodes(op="get_attr"):
        if isinstance(node.meta.get("val"), Tensor):
            yield node


def same_memory(tensor: Tensor) -> Hashable:
    """What is equal for tensors that show the same memory in the same way; None for one without values."""
    if tensor.is_meta or isinstance(tensor, FakeTensor) or not tensor.numel():
        return None
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.device


def owner(node: Node) -> tuple[str, str]:
    """Return path and class of the module whose call created a node; empty texts if capture did not record it."""
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = list(stack.values())[-1]
    return path, kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"


def fake(gm: GraphModule, tensor: Tensor) -> Tensor:
    """Return a fake tensor for `tensor`, of static shape, in the program's fake mode."""
    result = fake_mode(gm).from_tensor(tensor, static_shapes=True)
    assert isinstance(result, torch.Tensor)
    return result
