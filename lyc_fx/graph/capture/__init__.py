"""Capturing a PyTorch model as a program: a plain GraphModule of ATen operators on named weights."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lyc_fx.errors import CaptureError
from lyc_fx.graph.capture.calls import call_binder
from lyc_fx.graph.capture.compared import refuse_different
from lyc_fx.graph.capture.dynamic import (
    DynamicShapes,
    SpecializedDimension,
    bind_arguments,
    export_shapes,
    name_kwargs,
    order_kwargs,
    size_ranges,
    warn_of_specialized,
)
from lyc_fx.graph.capture.fakes import device_of, fake_copy
from lyc_fx.graph.capture.given import refuse_misplaced
from lyc_fx.graph.capture.guards import InputGuards
from lyc_fx.graph.capture.mode import ModeGuard, mode_matters
from lyc_fx.graph.capture.normalize import finish, inline_grad_blocks, name_weights_by_use
from lyc_fx.graph.capture.numel import spell_out_counts
from lyc_fx.graph.capture.outputs import baked_constants, copy_example, register
from lyc_fx.graph.capture.ties import name_constants, tie_by_memory
from lyc_fx.graph.capture.work import runs_quickly
from lyc_fx.graph.copies import non_persistent, set_tensor
from lyc_fx.graph.layers import graphs
from lyc_fx.graph.program import (
    Facts,
    module_aliases,
    remember,
    tensors,
    uncompiled,
    without_autocast,
)
from lyc_fx.graph.program import aliases as tied
from lyc_fx.naming.disk import names_on_disk

__all__ = ["DynamicShapes", "SpecializedDimension", "capture"]


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: DynamicShapes = None,
    *,
    check: bool | None = None,
) -> GraphModule:
    """Capture a model as a plain `torch.fx.GraphModule`.

    Weights are `get_attr` nodes named as in the model's state dict, operators are ATen overloads, and
    `node.meta["val"]` holds fake tensors with symbolic sizes. The program shares the model's parameters and buffers,
    and is in the same mode (training or evaluation). The model may be on the meta device.

    `model` is any `nn.Module`, including one from `torch.fx.symbolic_trace`, or an `ExportedProgram`, which needs no
    inputs. `args` and `kwargs` are example inputs. The program takes the same arguments as this example: other Python
    values, another dtype or other optional arguments need another capture.

    `dynamic_shapes` says which sizes may vary: `"auto"`, or the names of each input's dimensions, such as
    `{"sample": "batch<=8 _ height width"}`, with `_` for a fixed size, or any value that `torch.export` takes. Sizes
    that become fixed all the same are named by a SpecializedDimension warning; with `"auto"`, only those for which the
    example has size 1 or 0.

    With `check=True`, model and program both run on the example and must give the same results, since a model may take
    another path while it is exported; buffers are restored. By default (None) this is done if all weights have values
    and a run takes little time compared to the capture.

    Raises CaptureError for a model that cannot be captured, and for one whose program gives other results; the message
    names the first module that differs.
    """
    refuse_misplaced(model, args, kwargs)
    if isinstance(model, ExportedProgram):
        if check:
            raise CaptureError("check=True compares with a model, and an ExportedProgram has none: use check=False")
        return _from_program(model, tie_by_memory(model), {})
    model = uncompiled(model)
    args, kwargs = tuple(args), dict(kwargs or {})
    register((args, kwargs), inputs=True)
    bound = bind_arguments(model, args, kwargs)
    kwargs = order_kwargs(kwargs, bound)
    shapes = export_shapes(dynamic_shapes, bound)
    program = _export(model, args, kwargs, bound, shapes)
    gm = _from_program(program, tensors(model), module_aliases(model), model, baked_constants((args, kwargs)))
    if runs_quickly(gm, (args, kwargs)) if check is None else check:
        refuse_different(model, gm, args, kwargs)
    if shapes is not None:
        warn_of_specialized(gm, shapes, small=dynamic_shapes == "auto")
    return gm


def _export(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], bound: Mapping[str, Any], shapes: Any
) -> ExportedProgram:
    device = device_of(model, (args, kwargs))
    copy, mode = fake_copy(model, device)
    try:
        name_kwargs(copy, bound)
        copy.register_forward_hook(lambda module, inputs, output: register(output))
        args, kwargs = copy_example((args, kwargs), device)
        with mode, without_autocast(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                with torch.enable_grad():
                    return torch.export.export(copy, args, kwargs, dynamic_shapes=shapes, strict=False)
            except NotImplementedError as error:
                if "backward" not in str(error):  # an operator without a backward, such as flex_attention on the CPU
                    raise
                with torch.no_grad():
                    return torch.export.export(copy, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be captured: {type(error).__name__}: {_brief(error)}\n{_advice(error)}"
        ) from error


def _from_program(
    program: ExportedProgram,
    real: Mapping[str, Tensor],
    aliases: Mapping[str, str],
    model: nn.Module | None = None,
    constants: Sequence[tuple[str, Any]] = (),
) -> GraphModule:
    gm = program.module(check_guards=False)
    guards = getattr(program.module(check_guards=True), "_guards_fn", None)
    assert isinstance(gm, GraphModule)
    skipped = non_persistent(model or gm)
    for name, tensor in real.items():
        set_tensor(gm, name, tensor, persistent=None if isinstance(tensor, nn.Parameter) else name not in skipped)
    name_constants(gm, real)
    left = [name for name, tensor in _stored(gm).items() if isinstance(tensor, FakeTensor)]
    if left:
        raise CaptureError(
            f"{', '.join(left[:5])} has no value: the model stores a tensor that it creates while it runs; create it "
            "before capture, or register it as a buffer"
        )
    inline_grad_blocks(gm)
    for graph in graphs(gm):
        spell_out_counts(graph)
    name_weights_by_use(gm, dict(aliases))
    inputs = tuple(str(n.target) for n in gm.graph.find_nodes(op="placeholder"))
    top = tuple(getattr(gm.graph._codegen.pytree_info, "orig_args", inputs))  # type: ignore[attr-defined]
    gm._forward_pre_hooks.clear()
    result = finish(gm, gm, {})
    binder = None if model is None else call_binder(model.forward, top)
    if binder is not None:
        result.register_forward_pre_hook(binder, with_kwargs=True)
    if isinstance(guards, nn.Module):
        flat = [(str(n.target), isinstance(n.meta.get("val"), Tensor)) for n in gm.graph.find_nodes(op="placeholder")]
        result.register_forward_pre_hook(InputGuards(guards, top, constants, flat), with_kwargs=True)
    if model is not None:
        result.training = model.training
    if mode_matters(result if model is None else model):
        result.register_forward_pre_hook(ModeGuard(training=result.training), with_kwargs=True)
    ties = tuple(
        tuple(each) for names in tied(result).values() if len(each := [n for n in names if n not in aliases]) > 1
    )
    on_disk = {} if model is None else names_on_disk(model)
    guards = tuple(program._guards_code)
    known = Facts(tuple(result.state_dict()), dict(aliases), ties, on_disk, size_ranges(program), guards)
    remember(result, **vars(known))
    return result


def _stored(gm: GraphModule) -> dict[str, Any]:
    return {str(n.target): _attribute(gm, str(n.target)) for n in gm.graph.find_nodes(op="get_attr")}


def _attribute(gm: GraphModule, name: str) -> Any:
    path, _, leaf = name.rpartition(".")
    return getattr(gm.get_submodule(path), leaf)


def _brief(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return "\n".join(lines[:4])


def _advice(error: Exception) -> str:
    text = f"{type(error).__name__} {error}"
    if "DataDependent" in text or "data-dependent" in text or "Could not guard" in text:
        return (
            "Its Python code branches on a tensor's values. Try torch.cond, torch.where, or an argument that fixes "
            "the branch; or use lyc_fx.merge on the live model, which needs no capture."
        )
    if "Constraints violated" in text or "specialized" in text:
        return (
            'Try dynamic_shapes="auto", which fixes sizes where the model requires it, and example sizes of 2 or more.'
        )
    return (
        "Try inputs that model(*args, **kwargs) takes, on the model's device and in its dtype; "
        'dynamic_shapes=None; or lyc_fx.merge and "lyc-fx fold", which need no capture.'
    )
