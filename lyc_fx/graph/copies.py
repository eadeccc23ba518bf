"""Making programs from programs that share their tensors, and setting tensors by name."""

from typing import Any, final

from torch import Tensor, nn
from torch.fx import Graph, GraphModule

from lyc_fx.graph.program import tensors


def set_tensor(module: nn.Module, name: str, tensor: Tensor, *, persistent: bool | None = None) -> None:
    """Set a tensor by its dotted name, creating modules where needed: a parameter as such, anything else as a buffer.

    With `persistent=None`, an existing buffer stays as persistent as it was, and a new tensor becomes a plain attribute
    without a state-dict key.
    """
    path, _, leaf = name.rpartition(".")
    owner = module
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if isinstance(tensor, nn.Parameter):
        if leaf in owner._buffers or leaf not in owner._parameters:
            owner.__dict__.pop(leaf, None)
            owner._buffers.pop(leaf, None)
        owner.register_parameter(leaf, tensor)
        return
    if persistent is None and leaf not in owner._buffers:
        owner.__dict__.pop(leaf, None)
        owner._parameters.pop(leaf, None)
        setattr(owner, leaf, tensor)
        return
    keep = leaf not in owner._non_persistent_buffers_set if persistent is None else persistent
    owner._parameters.pop(leaf, None)
    owner.__dict__.pop(leaf, None)
    owner.register_buffer(leaf, tensor, persistent=keep)


def non_persistent(module: nn.Module) -> set[str]:
    """Return the names of the buffers that the state dict leaves out."""
    return {
        f"{path}.{leaf}" if path else leaf
        for path, owner in module.named_modules(remove_duplicate=False)
        for leaf in owner._non_persistent_buffers_set
    }


def rebuilt(source: nn.Module, graph: Graph, *, meta: dict[str, Any] | None = None) -> GraphModule:
    """Make a GraphModule for `graph` that shares all tensors of `source`, and its checks of inputs.

    Tensors that the graph does not read are kept, so that the state dict has the same keys. `meta` replaces that of
    `source`.
    """
    gm = GraphModule(source, graph)
    skipped, stored = non_persistent(source), tensors(source)
    for name, tensor in stored.items():
        set_tensor(gm, name, tensor, persistent=None if isinstance(tensor, nn.Parameter) else name not in skipped)
    for name, tensor in tensors(gm).items():
        if name not in stored:  # a constant, of which GraphModule makes a buffer: keep it out of the state dict
            set_tensor(gm, name, tensor, persistent=False)
    for hook in source._forward_pre_hooks.values():
        gm.register_forward_pre_hook(hook, with_kwargs=True)
    gm.meta = dict(meta if meta is not None else getattr(source, "meta", {}))
    gm.training = source.training
    gm._register_deepcopy_hook(CopiesHooks(gm))
    return gm


@final
class CopiesHooks:
    """A hook for deep copies of a program: it copies the program's checks of inputs, which torch leaves out."""

    def __init__(self, gm: GraphModule) -> None:
        self._gm = gm

    def __call__(self, copied: GraphModule) -> None:
        for hook in self._gm._forward_pre_hooks.values():
            copied.register_forward_pre_hook(hook, with_kwargs=True)
        copied._deepcopy_hooks = [CopiesHooks(copied)]

    def __deepcopy__(self, memo: dict[int, Any]) -> "CopiesHooks":
        return self  # the copy gets its own


def cloned(gm: GraphModule) -> GraphModule:
    """Return a copy of a program with a graph of its own, which may be changed; the tensors are shared."""
    graph = Graph(tracer_cls=gm.graph._tracer_cls)
    output = graph.graph_copy(gm.graph, val_map={}, return_output_node=True)
    assert isinstance(output, tuple)
    value, node = output
    graph.output(value, type_expr=getattr(node, "type", None)).meta.update(node.meta)
    graph._codegen = gm.graph._codegen
    return rebuilt(gm, graph)
