"""Finding the module of a model whose results differ from those in the captured program."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from lyc_fx.graph.trials import values
from lyc_fx.graph.validation import gap


def first_differing(
    model: nn.Module, gm: GraphModule, run: Callable[[nn.Module], object], inputs: list[Any], tolerance: float
) -> str | None:
    """Return the path of the first module, in the order in which they finish, with a result that differs.

    A module's results are compared with the values that leave the same module in the program. `run` runs a model on the
    example; `inputs` are the example's flat inputs. None if no result differs, except those of the outermost module.
    """
    known: dict[str, list[Tensor]] = {}
    for node, value in values(gm, inputs):
        for path in _paths(node):
            if not node.users or any(path not in _paths(user) for user in node.users):  # it leaves the module
                known.setdefault(path, []).append(value)
    for path, results in _results(model, run):
        for result in results if path in known else []:
            if not any(_equal(result, value, tolerance) for value in known[path]):
                return path
    return None


def _paths(node: Node) -> list[str]:
    """Return the paths of the modules in which a node was traced, without the marks of repeated calls (`layer@1`)."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    return [path.partition("@")[0] for path, _ in stack.values() if path]


def _results(model: nn.Module, run: Callable[[nn.Module], object]) -> list[tuple[str, list[Tensor]]]:
    """Run a model and return the tensors that each of its modules returned, by path, in the order of the calls."""
    found: list[tuple[str, list[Tensor]]] = []

    def record(path: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, args: object, result: object) -> None:
            found.append((path, [leaf.clone() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]))

        return hook

    handles = [module.register_forward_hook(record(path)) for path, module in model.named_modules() if path]
    try:
        run(model)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _equal(one: Tensor, other: Tensor, tolerance: float) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and gap(one, other) <= tolerance
